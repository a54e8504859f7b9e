"""From a wish to a request: the defaults, the bounds, and refusals that name field and numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.diffusion.limits import make_offer
from predictors.diffusion.request import MAX_SEED, Offer, Wish, row_seeds
from predictors.errors import InvalidRequest, TooLarge
from predictors.models.flux.config import read_facts
from predictors.settings import FluxSettings, InvalidSetting
from tests.diffusion.room import CHECKPOINT

FACTS, _ = read_facts(CHECKPOINT)
OFFER = make_offer(FACTS, FluxSettings(max_pixels=512 * 512, max_side=768))
WISH = Wish("a red circle")
MAX_TOKENS = FACTS.max_text_tokens


def test_defaults_come_from_the_checkpoint() -> None:
    request = OFFER.request(WISH)
    assert (request.width, request.height) == (FACTS.sample_size, FACTS.sample_size)
    assert (request.num_inference_steps, request.guidance_scale) == (28, 3.5)
    assert request.max_sequence_length == FACTS.default_text_tokens
    assert (request.true_cfg_scale, request.is_guided, request.num_rows) == (1.0, False, 1)
    assert (request.output_format, request.output_compression) == ("png", None)


def test_a_checkpoint_without_guidance_embedding_takes_four_steps() -> None:
    facts = replace(FACTS, shape=replace(FACTS.shape, has_guidance=False))
    offer = make_offer(facts, FluxSettings())
    assert offer.request(WISH).num_inference_steps == 4
    assert offer.default_sequence_length == min(FACTS.max_text_tokens, 256)
    assert offer.request(Wish("x", negative_prompt="y")).is_guided  # true CFG is for it as well


def test_settings_beat_the_checkpoint() -> None:
    offer = make_offer(
        FACTS, FluxSettings(default_steps=9, default_size="96x64", max_sequence_length=8)
    )
    request = offer.request(WISH)
    assert (request.width, request.height) == (96, 64)
    assert (request.num_inference_steps, request.max_sequence_length) == (9, 8)


def test_a_default_that_would_always_be_refused_gives_way_to_the_first_promised_size() -> None:
    offer = make_offer(FACTS, FluxSettings(sizes="96x64,64x64", unpromised="refuse"))
    assert (offer.request(WISH).width, offer.request(WISH).height) == (96, 64)


def test_an_unpromised_shape_is_refused_with_the_list_or_served_as_set() -> None:
    knobs = {"sizes": "96x64,64x64", "max_sequence_length": 16}
    strict, loose = offer_of(**knobs, unpromised="refuse"), offer_of(**knobs)
    other, longer = Wish("x", width=80, height=64), Wish("x", width=64, max_sequence_length=17)
    assert loose.request(other).width == 80
    assert loose.request(longer).max_sequence_length == 17
    with pytest.raises(InvalidRequest, match="80x64 is not served here; promised are 96x64, 64x64"):
        strict.request(other)
    with pytest.raises(InvalidRequest, match=r"max_sequence_length 17 .* promised is 16"):
        strict.request(longer)


def test_an_absent_seed_is_drawn_anew_each_time() -> None:
    assert len({OFFER.request(WISH).seed for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("wish", "guided", "scale"),
    [
        (Wish("x", negative_prompt="y"), True, 4.0),
        (Wish("x", negative_prompt=""), True, 4.0),
        (Wish("x", negative_prompt="y", true_cfg_scale=1.0), False, 1.0),
        (Wish("x", negative_prompt="y", true_cfg_scale=1.5), True, 1.5),
        (Wish("x", true_cfg_scale=1.0), False, 1.0),
        (Wish("x", true_cfg_scale=0.0), False, 0.0),
    ],
)
def test_a_negative_prompt_turns_true_cfg_on_unless_the_scale_says_no(
    wish: Wish, guided: bool, scale: float
) -> None:
    request = OFFER.request(wish)
    assert (request.is_guided, request.true_cfg_scale) == (guided, scale)
    assert request.num_rows == (2 if guided else 1)


BAD: list[tuple[Wish, str, str]] = [
    (Wish("x", width=100), "width", "multiple of 16 from 64 to 768, not 100"),
    (Wish("x", height=48), "height", "multiple of 16 from 64 to 768, not 48"),
    (Wish("x", width=0), "width", "not 0"),
    (Wish("x", height=-64), "height", "not -64"),
    (Wish("x", width=784), "width", "not 784"),
    (Wish("x", width=768, height=768), "width", "768x768 = 589824 pixels; at most 262144"),
    (Wish("x", num_inference_steps=0), "num_inference_steps", "from 1 to 100, not 0"),
    (Wish("x", num_inference_steps=101), "num_inference_steps", "from 1 to 100, not 101"),
    (Wish("x", guidance_scale=-0.5), "guidance_scale", "from 0 to 100, not -0.5"),
    (Wish("x", guidance_scale=float("nan")), "guidance_scale", "not nan"),
    (Wish("x", true_cfg_scale=101.0, negative_prompt=""), "true_cfg_scale", "not 101.0"),
    (Wish("x", true_cfg_scale=2.0), "true_cfg_scale", "needs a negative_prompt"),
    (Wish("x", seed=-1), "seed", "not -1"),
    (Wish("x", seed=2**53), "seed", f"from 0 to {MAX_SEED}, not {2**53}"),
    (Wish("x", max_sequence_length=0), "max_sequence_length", f"from 1 to {MAX_TOKENS}, not 0"),
    (Wish("x", max_sequence_length=MAX_TOKENS + 1), "max_sequence_length", f"1 to {MAX_TOKENS}"),
    (Wish("x", output_format="gif"), "output_format", "png, jpeg, webp, not 'gif'"),
    (Wish("x", output_format="jpeg", output_compression=101), "output_compression", "0 to 100"),
    (Wish("x", output_compression=50), "output_compression", "png is always lossless"),
    (Wish("x" * 32769), "prompt", "32769 bytes; at most 32768"),
    (Wish("x", negative_prompt="é" * 16385), "negative_prompt", "32770 bytes"),
    (Wish("\ud800"), "prompt", "not Unicode text"),
    (Wish("x", tier="high"), "tier", "'high' is not loaded here; loaded are lossless, turbo"),
    (Wish("x", tier=""), "tier", "'' is not loaded here"),
    (Wish("x", tier="x" * 1000), "tier", "is not loaded here"),
]


@pytest.mark.parametrize(("wish", "param", "words"), BAD)
def test_what_cannot_be_drawn_is_refused_by_field_and_numbers(
    wish: Wish, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        OFFER.request(wish)
    assert refusal.value.param == param
    assert words in refusal.value.message
    assert len(refusal.value.message) < 300


def test_a_prompt_of_a_megabyte_counts_as_too_large() -> None:
    with pytest.raises(TooLarge):
        OFFER.request(Wish("a" * 2**20))


def test_a_prompt_of_32_kilobytes_empty_or_of_control_characters_is_fine() -> None:
    for prompt in ("", "a" * 32768, "\x00\x01\x7f\u202e\ufeff", "🟥" * 100):
        assert OFFER.request(Wish(prompt)).prompt == prompt


@given(st.integers(-100, 1000), st.integers(-100, 1000))
def test_a_size_is_taken_or_refused_by_its_own_arithmetic(width: int, height: int) -> None:
    fits = all(64 <= side <= 768 and side % 16 == 0 for side in (width, height))
    wish = Wish("x", width=width, height=height)
    if fits and width * height <= 512 * 512:
        request = OFFER.request(wish)
        assert (request.width, request.height) == (width, height)
    else:
        with pytest.raises(InvalidRequest, match=r"width|height"):
            OFFER.request(wish)


@given(st.integers(0, MAX_SEED), st.integers(1, 64))
def test_rows_count_up_from_the_seed_or_the_request_is_refused(seed: int, rows: int) -> None:
    if seed + rows - 1 <= MAX_SEED:
        assert row_seeds(seed, rows) == list(range(seed, seed + rows))
    else:
        with pytest.raises(InvalidRequest, match="passes the largest seed"):
            row_seeds(seed, rows)


def test_seeds_wrap_nowhere() -> None:
    assert row_seeds(MAX_SEED - 3, 4)[-1] == MAX_SEED
    with pytest.raises(InvalidRequest):
        row_seeds(MAX_SEED - 3, 5)
    assert row_seeds(None, 3) == [None, None, None]


def offer_of(**settings: object) -> Offer:
    return make_offer(FACTS, FluxSettings(**settings))  # type: ignore[arg-type]


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
def test_settings_that_contradict_the_checkpoint_or_each_other_stop_the_start(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidSetting, match=named):
        offer_of(**settings)
