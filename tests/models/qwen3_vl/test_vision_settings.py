"""Usual settings of pictures and films mean what transformers' processors take them for: numbers,
sizes, the frames that are picked, and patches to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize
from transformers.video_utils import VideoMetadata

from predictors.chat.checkpoint import CLASS_SIZE
from predictors.chat.vision.films import FilmPreparation
from predictors.chat.vision.pixels import fitted_film_size, fitted_size
from predictors.chat.vision.settings import FILM_DEFAULTS, PROCESSOR_DEFAULTS, usual_settings
from predictors.models.qwen2_5_vl.films import SpacedFilms
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.models.qwen3_vl.films import TimedFilms
from predictors.models.qwen3_vl.model import Qwen3VLModel
from predictors.protocol.films.decode import FilmFacts

IMAGE_DEFAULTS = {
    **PROCESSOR_DEFAULTS,
    **Qwen25VLModel.image_defaults,
    "size": CLASS_SIZE,
}
PICTURES = ("do_resize", "do_rescale", "do_normalize", "resample", "rescale_factor")
PICTURES += ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
FILMS = (*PICTURES, "min_frames", "max_frames", "num_frames", "fps")
KINDS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...], bool]] = {
    "pictures": (Qwen2VLImageProcessor, IMAGE_DEFAULTS, PICTURES, True),
    "films of 2.5": (
        Qwen2VLVideoProcessor, {**FILM_DEFAULTS, **Qwen25VLModel.film_defaults}, FILMS, True,
    ),
    "films of 3": (
        Qwen3VLVideoProcessor, {**FILM_DEFAULTS, **Qwen3VLModel.film_defaults}, FILMS, False,
    ),
}  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "none": {},
    "older names": {"min_pixels": 4000, "max_pixels": 90000},
    "one older name": {"max_pixels": 90000},
    "others": {"patch_size": 8, "image_std": [0.1, 0.2, 0.3], "rescale_factor": 0.1},
    "frames": {"fps": 3.5, "min_frames": 2, "max_frames": 30},
    "a number of frames": {"num_frames": 12},
}
UNUSUAL: dict[str, dict[str, Any]] = {
    "null": dict.fromkeys(PICTURES),
    "one null": {"image_mean": None},
    "bilinear": {"resample": 2},
    "no rescaling": {"do_rescale": False},
    "no normalising": {"do_normalize": False},
    "another size": {"size": {"height": 3, "width": 4}},
}


@pytest.mark.parametrize("form", GIVEN)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_what_the_class_makes_of_them(kind: str, form: str) -> None:
    processor, defaults, names, renames = KINDS[kind]
    values = {"size": dict(defaults["size"]), **GIVEN[form]}
    ours = usual_settings(values, defaults, renames_edges=renames)
    theirs = processor.from_dict(copy.deepcopy(values))
    if not renames and "max_pixels" in values:
        assert ours is None  # the class itself is asked
        return
    assert ours is not None
    for name in names:
        mine, yours = getattr(ours, name), getattr(theirs, name)
        both = [tuple(x) if isinstance(x, list | tuple) else x for x in (mine, yours)]
        assert both[0] == both[1], name
    assert all(ours.size[edge] == theirs.size[edge] for edge in ours.size)
    assert defaults["size"] == KINDS[kind][1]["size"]


@pytest.mark.parametrize("form", UNUSUAL)
def test_unusual_settings_are_left_to_the_class(form: str) -> None:
    assert usual_settings(UNUSUAL[form], IMAGE_DEFAULTS) is None


SIDES = st.integers(1, 3000)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 64), SIDES, SIDES, st.integers(1, 10**6), st.integers(784, 10**8))
def test_sizes_of_films_are_the_librarys(
    frames: int, height: int, width: int, least: int, most: int
) -> None:
    height, width = max(height, 28), max(width, 28)
    given = (frames, height, width, 2, 28, min(least, most), most)
    assert fitted_film_size(*given) == smart_resize(*given)


def test_sides_too_far_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="absolute aspect ratio must be smaller than 200"):
        fitted_size(10, 2001, 28, 100, 10**6)


def films_of(kind: str, values: dict[str, Any]) -> tuple[FilmPreparation, FilmPreparation]:
    """With our settings, and with the library's processor."""
    processor, defaults, _, _ = KINDS[kind]
    ours, theirs = usual_settings(values, defaults), processor.from_dict(values)
    if kind == "films of 3":
        return TimedFilms(ours), TimedFilms(theirs)
    return SpacedFilms(ours, 4), SpacedFilms(theirs, 4)


@pytest.mark.parametrize("kind", ["films of 2.5", "films of 3"])
@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 2000), st.floats(1, 120), st.one_of(st.none(), st.integers(2, 40)),
    st.floats(0.1, 30), st.sampled_from([2, 4, 6, 8]), st.integers(8, 64),
)  # fmt: skip
def test_the_frames_that_are_picked_are_the_librarys(
    kind: str, frames: int, rate: float, count: int | None, fps: float, least: int, most: int
) -> None:
    """Of Qwen2.5-VL it picks too many, or raises an error, where it rounds beyond the end."""
    ours, theirs = films_of(kind, {"min_frames": least, "max_frames": most})
    wanted = {"num_frames": count, "fps": None if count is not None else fps}
    facts = FilmFacts(width=40, height=30, frames=frames, fps=rate)
    picker = theirs._videos
    try:
        metadata = VideoMetadata(total_num_frames=frames, fps=rate)
        expected = tuple(int(i) for i in picker.sample_frames(metadata, **wanted))
    except (ValueError, ZeroDivisionError):
        expected = tuple(frames * i // (frames // 2 * 2) for i in range(frames // 2 * 2))
    if kind == "films of 2.5":
        expected = expected[: len(expected) // 2 * 2]
    assert ours._picked(ours._videos, facts, count, wanted["fps"]) == expected


@pytest.mark.parametrize("size", [(56, 84), (100, 333), (31, 29)])
@pytest.mark.parametrize("kind", ["films of 2.5", "films of 3"])
def test_a_step_has_the_librarys_patches_to_the_bit(kind: str, size: tuple[int, int]) -> None:
    ours, theirs = films_of(kind, {})
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (2, *size, 3), generator=generator, dtype=torch.uint8)
    grid = (6, 4)
    values, layout = ours.step(frames, grid, on_device=False)
    assert layout is None
    assert torch.equal(values, theirs._unusual_step(frames.permute(0, 3, 1, 2), grid))
