"""Defaults, limits and tiers of a checkpoint: requests and settings that are taken or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.diffusion.limits import PictureLimits, make_limits, make_tiers
from predictors.diffusion.request import BASE, FP8, ImageParameters, Tiers
from predictors.errors import InvalidRequest, TooLarge
from predictors.models.flux.config import read_checkpoint
from predictors.protocol.seeds import MAX_SEED
from predictors.settings import FluxSettings, InvalidSetting
from tests.diffusion.driver import CHECKPOINT

CONFIG, _ = read_checkpoint(CHECKPOINT)
LIMITS = make_limits(CONFIG, FluxSettings(max_pixels=512 * 512, max_side=768))
IMAGE = ImageParameters("a red circle")
MAX_TOKENS = CONFIG.max_text_tokens
CPU, OLD_GPU, GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


def test_defaults_come_from_the_checkpoint() -> None:
    request = LIMITS.resolve(IMAGE)
    assert (request.width, request.height) == (CONFIG.sample_size, CONFIG.sample_size)
    assert (request.num_inference_steps, request.guidance_scale) == (28, 3.5)
    assert request.max_sequence_length == CONFIG.default_text_tokens
    assert (request.true_cfg_scale, request.is_guided, request.num_rows) == (1.0, False, 1)
    assert (request.output_format, request.output_compression) == ("png", None)


def test_a_checkpoint_without_guidance_embedding_takes_four_steps() -> None:
    config = replace(CONFIG, shape=replace(CONFIG.shape, has_guidance=False))
    limits = make_limits(config, FluxSettings())
    assert limits.resolve(IMAGE).num_inference_steps == 4
    assert limits.default_sequence_length == min(CONFIG.max_text_tokens, 256)
    # true CFG is for such a checkpoint too
    assert limits.resolve(ImageParameters("x", negative_prompt="y")).is_guided


def test_settings_override_the_checkpoints_defaults() -> None:
    limits = make_limits(
        CONFIG, FluxSettings(default_steps=9, default_size="96x64", max_sequence_length=8)
    )
    request = limits.resolve(IMAGE)
    assert (request.width, request.height) == (96, 64)
    assert (request.num_inference_steps, request.max_sequence_length) == (9, 8)


def test_a_default_size_that_would_be_refused_is_replaced_by_the_first_promised_one() -> None:
    limits = make_limits(CONFIG, FluxSettings(sizes="96x64,64x64", unpromised="refuse"))
    assert (limits.resolve(IMAGE).width, limits.resolve(IMAGE).height) == (96, 64)


def test_an_unpromised_shape_is_refused_with_the_list_or_served_as_set() -> None:
    knobs = {"sizes": "96x64,64x64", "max_sequence_length": 16}
    strict, loose = limits_of(**knobs, unpromised="refuse"), limits_of(**knobs)
    other, longer = (
        ImageParameters("x", width=80, height=64),
        ImageParameters("x", width=64, max_sequence_length=17),
    )
    assert loose.resolve(other).width == 80
    assert loose.resolve(longer).max_sequence_length == 17
    with pytest.raises(InvalidRequest, match="80x64 is not served here; promised are 96x64, 64x64"):
        strict.resolve(other)
    with pytest.raises(InvalidRequest, match=r"max_sequence_length 17 .* promised is 16"):
        strict.resolve(longer)


def test_a_request_without_a_seed_gets_a_random_one() -> None:
    assert len({LIMITS.resolve(IMAGE).seed for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("image", "guided", "scale"),
    [
        (ImageParameters("x", negative_prompt="y"), True, 4.0),
        (ImageParameters("x", negative_prompt=""), False, 1.0),
        (ImageParameters("x", negative_prompt=" \t\n"), False, 1.0),
        (ImageParameters("x", negative_prompt="", true_cfg_scale=1.0), False, 1.0),
        (ImageParameters("x", negative_prompt="y", true_cfg_scale=1.0), False, 1.0),
        (ImageParameters("x", negative_prompt="y", true_cfg_scale=1.5), True, 1.5),
        (ImageParameters("x", true_cfg_scale=1.0), False, 1.0),
        (ImageParameters("x", true_cfg_scale=0.0), False, 0.0),
    ],
)
def test_a_negative_prompt_turns_true_cfg_on_unless_the_scale_is_one(
    image: ImageParameters, guided: bool, scale: float
) -> None:
    request = LIMITS.resolve(image)
    assert (request.is_guided, request.true_cfg_scale) == (guided, scale)
    assert request.num_rows == (2 if guided else 1)


BAD: list[tuple[ImageParameters, str, str]] = [
    (ImageParameters("x", width=100), "width", "multiple of 16 from 64 to 768, not 100"),
    (ImageParameters("x", height=48), "height", "multiple of 16 from 64 to 768, not 48"),
    (ImageParameters("x", width=0), "width", "not 0"),
    (ImageParameters("x", height=-64), "height", "not -64"),
    (ImageParameters("x", width=784), "width", "not 784"),
    (
        ImageParameters("x", width=768, height=768),
        "width",
        "768x768 = 589824 pixels; at most 262144",
    ),
    (ImageParameters("x", num_inference_steps=0), "num_inference_steps", "from 1 to 100, not 0"),
    (
        ImageParameters("x", num_inference_steps=101),
        "num_inference_steps",
        "from 1 to 100, not 101",
    ),
    (ImageParameters("x", guidance_scale=-0.5), "guidance_scale", "from 0 to 100, not -0.5"),
    (ImageParameters("x", guidance_scale=float("nan")), "guidance_scale", "not nan"),
    (ImageParameters("x", true_cfg_scale=101.0, negative_prompt="y"), "true_cfg_scale", "not 101."),
    (ImageParameters("x", true_cfg_scale=2.0), "true_cfg_scale", "needs a negative_prompt"),
    (
        ImageParameters("x", true_cfg_scale=2.0, negative_prompt=" "),
        "true_cfg_scale",
        "needs a negative_prompt",
    ),
    (ImageParameters("x", seed=-2), "seed", "not -2"),
    (
        ImageParameters("x", seed=2**53),
        "seed",
        f"from 0 to {MAX_SEED}, or -1 for one that is drawn, not {2**53}",
    ),
    (
        ImageParameters("x", max_sequence_length=0),
        "max_sequence_length",
        f"from 1 to {MAX_TOKENS}, not 0",
    ),
    (
        ImageParameters("x", max_sequence_length=MAX_TOKENS + 1),
        "max_sequence_length",
        f"1 to {MAX_TOKENS}",
    ),
    (ImageParameters("x", output_format="gif"), "output_format", "png, jpeg, webp, not 'gif'"),
    (
        ImageParameters("x", output_format="jpeg", output_compression=101),
        "output_compression",
        "0 to 100",
    ),
    (ImageParameters("x", output_compression=50), "output_compression", "png is always lossless"),
    (ImageParameters("x" * 32769), "prompt", "32769 bytes; at most 32768"),
    (ImageParameters("x", negative_prompt="é" * 16385), "negative_prompt", "32770 bytes"),
    (ImageParameters("\ud800"), "prompt", "not Unicode text"),
    (
        ImageParameters("x", tier="high"),
        "tier",
        "'high' is not loaded here; loaded are lossless, turbo",
    ),
    (ImageParameters("x", tier=""), "tier", "'' is not loaded here"),
    (ImageParameters("x", tier="x" * 1000), "tier", "is not loaded here"),
]


@pytest.mark.parametrize(("image", "param", "words"), BAD)
def test_a_refusal_names_the_field_and_the_numbers(
    image: ImageParameters, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        LIMITS.resolve(image)
    assert refusal.value.param == param
    assert words in refusal.value.message
    assert len(refusal.value.message) < 300


def test_a_prompt_of_a_megabyte_is_too_large() -> None:
    with pytest.raises(TooLarge):
        LIMITS.resolve(ImageParameters("a" * 2**20))


def test_a_prompt_may_have_32_kilobytes_be_empty_or_have_control_characters() -> None:
    for prompt in ("", "a" * 32768, "\x00\x01\x7f\u202e\ufeff", "🟥" * 100):
        assert LIMITS.resolve(ImageParameters(prompt)).prompt == prompt


@given(st.integers(-100, 1000), st.integers(-100, 1000))
def test_a_size_is_served_exactly_if_sides_and_area_are_within_the_limits(
    width: int, height: int
) -> None:
    fits = all(64 <= side <= 768 and side % 16 == 0 for side in (width, height))
    image = ImageParameters("x", width=width, height=height)
    if fits and width * height <= 512 * 512:
        request = LIMITS.resolve(image)
        assert (request.width, request.height) == (width, height)
    else:
        with pytest.raises(InvalidRequest, match=r"width|height"):
            LIMITS.resolve(image)


def limits_of(**settings: object) -> PictureLimits:
    return make_limits(CONFIG, FluxSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sizes": "64"}, "flux.sizes"),
        ({"sizes": "64x64,100x64"}, "100x64 can't be promised"),
        ({"default_size": "axb"}, "flux.default_size"),
        ({"max_sequence_length": 9999}, "flux.max_sequence_length"),
        ({"default_steps": 200}, "flux.default_steps"),
        ({"default_size": "64x64", "sizes": "96x64", "unpromised": "refuse"}, "flux.default_size"),
    ],
)
def test_settings_that_contradict_the_checkpoint_or_each_other_are_refused(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidSetting, match=named):
        limits_of(**settings)


# -- tiers ----------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _one_gpu_has_fp8_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictors.diffusion.limits.has_fp8_units", lambda device: device == GPU)


def tiers(device: torch.device, *, is_quantized: bool = False, **settings: Any) -> Tiers:
    return make_tiers(FluxSettings(**settings), device, is_quantized=is_quantized)


@pytest.mark.parametrize(
    ("device", "is_quantized", "loaded", "forms"),
    [
        (CPU, False, "lossless turbo", (BASE,)),
        (OLD_GPU, False, "lossless turbo", (BASE,)),
        (GPU, False, "lossless high turbo", (BASE, FP8)),
        (CPU, True, "high turbo", (FP8,)),
        (GPU, True, "high turbo", (FP8,)),
    ],
)
def test_auto_loads_the_tiers_that_run_well_on_the_device(
    device: torch.device, is_quantized: bool, loaded: str, forms: tuple[str, ...]
) -> None:
    found = tiers(device, is_quantized=is_quantized)
    assert (found.loaded, found.forms) == (tuple(loaded.split()), forms)
    assert found.default == found.loaded[0]


@pytest.mark.parametrize(
    ("asked", "is_quantized", "forms"),
    [
        ("lossless", False, {"lossless": BASE}),
        (" turbo , lossless", False, {"lossless": BASE, "turbo": BASE}),
        ("high", False, {"high": FP8}),
        ("turbo", False, {"turbo": BASE}),
        ("turbo,high", False, {"high": FP8, "turbo": FP8}),
        ("lossless,high,turbo", False, {"lossless": BASE, "high": FP8, "turbo": FP8}),
        ("turbo", True, {"turbo": FP8}),
    ],
)
def test_tiers_that_are_named_are_loaded_also_on_the_cpu(
    asked: str, is_quantized: bool, forms: dict[str, str]
) -> None:
    found = tiers(CPU, is_quantized=is_quantized, tiers=asked)
    assert {tier: found.form_of(tier) for tier in found.loaded} == forms
    assert list(found.loaded) == list(forms)  # in the order of fidelity
    assert set(found.forms) == set(forms.values())


def test_a_request_without_a_tier_gets_the_default() -> None:
    for default in ("", "lossless", "turbo"):
        made = make_limits(CONFIG, FluxSettings(default_tier=default))
        assert made.resolve(ImageParameters("x")).tier == (default or "lossless")
        assert made.resolve(ImageParameters("x", tier="turbo")).may_skip
    assert not make_limits(CONFIG, FluxSettings()).resolve(ImageParameters("x")).may_skip


def test_a_checkpoint_stored_in_fp8_serves_high_by_default() -> None:
    made = make_limits(replace(CONFIG, is_quantized=True), FluxSettings())
    assert made.resolve(ImageParameters("x")).tier == "high"


@pytest.mark.parametrize(
    ("device", "is_quantized", "settings", "words"),
    [
        (CPU, False, {"tiers": "fast"}, "flux.tiers must be auto, or of lossless, high, turbo"),
        (CPU, False, {"tiers": ""}, "flux.tiers"),
        (CPU, False, {"tiers": "auto,turbo"}, "flux.tiers"),
        (CPU, False, {"default_tier": "high"}, "flux.default_tier is 'high', but flux.tiers are"),
        (CPU, True, {"tiers": "lossless,high"}, "stored in fp8"),
        (OLD_GPU, False, {"tiers": "high"}, "compute capability 8.9"),
        (OLD_GPU, True, {}, "compute capability 8.9"),
    ],
)
def test_tiers_that_the_device_or_checkpoint_rules_out_are_refused(
    device: torch.device, is_quantized: bool, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSetting, match=words):
        tiers(device, is_quantized=is_quantized, **settings)
