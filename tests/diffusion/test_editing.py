"""Pictures by kind of checkpoint: requests taken or refused, and sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st

from predictors.diffusion.editing import PREFERRED, Edits, preferred_sizes
from predictors.diffusion.limits import PictureLimits, make_limits
from predictors.diffusion.request import FILL, KONTEXT, TEXT, ImageParameters, SourcePicture
from predictors.errors import InvalidRequest
from predictors.models.flux.config import read_checkpoint
from predictors.settings import FluxSettings, InvalidSetting
from tests.diffusion.driver import CHECKPOINT

CONFIG, _ = read_checkpoint(CHECKPOINT)
KINDS = {kind: replace(CONFIG, kind=kind) for kind in (TEXT, FILL, KONTEXT)}
LIMITS = {kind: make_limits(config, FluxSettings()) for kind, config in KINDS.items()}
sides = st.integers(1, 20_000)


def blank(width: int, height: int, *, has_mask: bool = False) -> SourcePicture:
    mask = np.full((height, width), 255, np.uint8) if has_mask else None
    return SourcePicture(np.zeros((height, width, 3), np.uint8), mask)


def asked(**fields: Any) -> ImageParameters:
    return ImageParameters("a red circle", **fields)


REFUSED: dict[str, tuple[str, ImageParameters, str, str]] = {
    "text: strength alone": (TEXT, asked(strength=0.5), "strength", "requests with an image"),
    "text: strength": (TEXT, asked(source=blank(64, 64), strength=1.01), "strength", "from 0 to 1"),
    "text: NaN": (TEXT, asked(source=blank(64, 64), strength=float("nan")), "strength", "nan"),
    "text: size": (TEXT, asked(source=blank(64, 64), width=96), "image", "read at 96x64"),
    "text: sides": (TEXT, asked(source=blank(60, 64)), "width", "multiple of 16"),
    "fill: text": (FILL, asked(), "image", "FLUX.1-dev"),
    "fill: no mask": (FILL, asked(source=blank(64, 64)), "mask", "FLUX.1-Kontext can edit"),
    "kontext: mask": (
        KONTEXT,
        asked(source=blank(128, 128, has_mask=True)),
        "mask",
        "FLUX.1-Fill or",
    ),
    "kontext: strength": (KONTEXT, asked(source=blank(128, 128), strength=0.5), "strength", "0.5"),
    "kontext: size": (KONTEXT, asked(source=blank(64, 64)), "image", "read at 128x128"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_kind_cannot_do_is_refused_and_names_the_kind_that_can(case: str) -> None:
    kind, image, param, said = REFUSED[case]
    with pytest.raises(InvalidRequest, match=said) as failure:
        LIMITS[kind].resolve(image)
    assert failure.value.param == param


def test_a_mask_of_another_size_is_refused() -> None:
    source = SourcePicture(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 48), np.uint8))
    with pytest.raises(InvalidRequest, match="the mask 48x64"):
        LIMITS[TEXT].resolve(asked(source=source))


def test_without_its_encoder_a_model_draws_from_text_alone() -> None:
    limits = make_limits(CONFIG, FluxSettings(edits="off"))
    assert limits.edits.abilities == ("generate",)
    assert limits.resolve(asked()).source is None
    with pytest.raises(InvalidRequest, match=r"flux\.edits is off"):
        limits.resolve(asked(source=blank(64, 64)))
    assert not make_limits(replace(CONFIG, encoder=None), FluxSettings()).edits.is_loaded
    assert limits.promised_sources == ()


@pytest.mark.parametrize(
    ("kind", "has_encoder", "edits", "said"),
    [
        (TEXT, False, "on", "stores no encoder"),
        (FILL, True, "off", "only edits, but flux.edits is off"),
        (FILL, False, "auto", "only edits, but its vae stores no encoder"),
    ],
)
def test_settings_that_a_checkpoint_contradicts_are_refused(
    kind: str, has_encoder: bool, edits: str, said: str
) -> None:
    config = KINDS[kind] if has_encoder else replace(KINDS[kind], encoder=None)
    with pytest.raises(InvalidSetting, match=said):
        make_limits(config, FluxSettings(edits=edits))


def test_defaults_are_those_of_diffusers_pipelines() -> None:
    text, fill = LIMITS[TEXT], LIMITS[FILL]
    assert text.resolve(asked()).strength == 1
    assert text.resolve(asked(source=blank(64, 96))).strength == 0.6
    assert text.resolve(asked(source=blank(64, 96), strength=0.0)).strength == 0
    masked = fill.resolve(asked(source=blank(64, 96, has_mask=True)))
    assert (masked.strength, masked.guidance_scale, masked.num_inference_steps) == (1, 30, 50)
    assert (masked.width, masked.height) == (64, 96)
    assert LIMITS[KONTEXT].resolve(asked(source=blank(128, 128))).strength == 1


def test_the_preferred_sizes_are_diffusers_for_a_native_side_of_1024() -> None:
    assert list(PREFERRED) == PREFERRED_KONTEXT_RESOLUTIONS
    assert preferred_sizes(1024, 16) == PREFERRED
    assert LIMITS[KONTEXT].edits.preferred == preferred_sizes(128, 16)


@given(sides, sides)
def test_kontext_reads_a_picture_at_the_size_that_diffusers_chooses(w: int, h: int) -> None:
    limits = replace(
        LIMITS[KONTEXT], max_side=2048, edits=Edits(KONTEXT, True, preferred_sizes(1024, 16))
    )
    ratio = max(w // 16, 1) / max(h // 16, 1)
    _, *theirs = min((abs(ratio - x / y), x, y) for x, y in PREFERRED_KONTEXT_RESOLUTIONS)
    found = limits.source_size((64, 64), (w, h))
    assert abs(ratio - found[0] / found[1]) == abs(ratio - theirs[0] / theirs[1])
    assert limits.edit_size(None, None, (w, h)) == found


@given(sides, sides, st.sampled_from([TEXT, FILL, KONTEXT]), st.booleans(), st.integers(128, 1536))
def test_the_default_size_of_an_edit_is_always_drawn_and_read(
    width: int, height: int, kind: str, refuses: bool, most: int
) -> None:
    limits = replace(
        LIMITS[kind],
        max_pixels=most * most,
        sizes=((64, 64), (96, 64), (64, 128)),
        refuses_unpromised=refuses,
    )
    drawn = limits.edit_size(None, None, (width, height))
    read = limits.source_size(drawn, (width, height))
    limits.check_sides(*drawn)
    limits.check_sides(*read)
    assert drawn in limits.sizes or not refuses
    assert read == drawn or kind == KONTEXT
    assert limits.source_size(drawn, read) == read


@pytest.mark.parametrize(
    ("picture", "width", "height", "drawn"),
    [
        ((640, 480), None, None, (640, 480)),
        ((650, 485), None, None, (640, 480)),
        ((4000, 2000), None, None, (2048, 1024)),
        ((32, 64), None, None, (64, 128)),
        ((640, 480), 128, 96, (128, 96)),
        ((640, 480), 128, None, (128, 480)),
    ],
)
def test_an_edit_has_the_size_of_its_picture_unless_it_names_another(
    picture: tuple[int, int], width: int | None, height: int | None, drawn: tuple[int, int]
) -> None:
    assert LIMITS[TEXT].edit_size(width, height, picture) == drawn


def test_only_kontext_promises_passes_with_a_reference() -> None:
    def promised(kind: str, **settings: Any) -> PictureLimits:
        return make_limits(KINDS[kind], FluxSettings(sizes="64x64,96x64", **settings))

    plain = (((64, 64), (0, 0)), ((96, 64), (0, 0)))
    assert promised(TEXT).promised == promised(FILL).promised == plain
    assert promised(TEXT).promised_patches == {16, 24}
    assert promised(TEXT).promised_sources == ((64, 64), (96, 64))
    found = promised(KONTEXT)
    assert found.promised == (*plain, ((64, 64), (128, 128)), ((96, 64), (160, 96)))
    assert found.promised_patches == {16, 24, 16 + 64, 24 + 60}
    assert found.promised_sources == ((128, 128), (160, 96))
    assert found.longest_sequence == found.default_sequence_length + 84
    assert promised(KONTEXT, edits="off").promised == plain
