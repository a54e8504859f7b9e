"""Edits in the engine: strength 0 and 1, masks, steps shared with other pictures, one run of the
encoder for a picture, and what is counted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from predictors.diffusion.inputs import steps_called
from predictors.diffusion.request import ImageParameters, SourcePicture
from predictors.diffusion.sampling import first_step, plan_calls
from predictors.diffusion.warming import warm_picture
from tests.diffusion.driver import EngineDriver, open_driver
from tests.models.flux.edited import make_fill, make_kontext, masked, picture

TEXT = ImageParameters("a red circle", num_inference_steps=4, seed=1)
EDIT = replace(TEXT, source=picture())
INPAINT = replace(TEXT, source=masked(picture()))


@pytest.fixture(scope="module")
def editor() -> EngineDriver:
    return open_driver(model="editor", slots=6)


def test_strength_0_returns_the_picture_but_for_the_autoencoders_error(
    editor: EngineDriver,
) -> None:
    source = editor.draw(replace(TEXT, width=128, height=128, num_inference_steps=8))
    image = replace(TEXT, source=SourcePicture(source), strength=0.0)
    job = editor.job(image)
    assert job.work.plan.num_calls == 0
    (found,) = editor.drive([(0, job)])
    assert source.std() > 5
    assert np.abs(found.astype(int) - source).mean() < 3
    again = editor.draw(replace(image, prompt="something else", negative_prompt="x"))
    assert np.array_equal(found, again)
    assert not any("something else" in key for key in editor.engine._prompts._entries)


def test_strength_1_draws_the_bytes_of_text_to_image(editor: EngineDriver) -> None:
    plain = editor.draw(TEXT)
    assert np.array_equal(editor.draw(replace(EDIT, strength=1.0)), plain)
    everything = SourcePicture(picture().pixels, np.full((64, 64), 255, np.uint8))
    assert np.array_equal(editor.draw(replace(TEXT, source=everything, strength=1.0)), plain)


def test_more_strength_moves_a_picture_further(editor: EngineDriver) -> None:
    source = picture().pixels.astype(int)
    steps = replace(EDIT, num_inference_steps=8)
    moved = [
        np.abs(editor.draw(replace(steps, strength=s)).astype(int) - source).mean()
        for s in (0.0, 0.5, 1.0)
    ]
    assert moved == sorted(moved)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_pixels_far_outside_of_the_mask_stay_within_the_autoencoders_error(
    editor: EngineDriver, strength: float
) -> None:
    source = editor.draw(replace(TEXT, width=128, height=128, num_inference_steps=8))
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 80:] = 255
    edit = replace(TEXT, width=128, height=128, source=SourcePicture(source, mask), prompt="star")
    found = editor.draw(replace(edit, strength=strength)).astype(int)
    kept = editor.draw(replace(edit, strength=0.0)).astype(int)
    error = np.abs(kept - source).mean()
    far = np.abs(found[:, : 80 - 16] - source[:, : 80 - 16]).mean()
    assert far <= 2 * error + 1
    assert not np.array_equal(found[:, 80:], kept[:, 80:])
    if strength == 1:
        assert np.abs(found[:, 80:] - kept[:, 80:]).mean() > 2 * far


def test_each_gets_the_bytes_beside_others_that_it_gets_alone(
    editor: EngineDriver, threads: int
) -> None:
    images = [
        TEXT,
        EDIT,
        INPAINT,
        replace(EDIT, strength=0.0),
        replace(INPAINT, negative_prompt="blue", true_cfg_scale=2.0, seed=4),
        replace(EDIT, strength=0.3, seed=2**33),
    ]
    alone = [editor.draw(image) for image in images]
    assert len({each.tobytes() for each in alone}) == len(images)
    for arrivals in ([0] * 6, [5, 4, 3, 2, 1, 0]):
        jobs = [editor.job(image) for image in images]
        for a, b in zip(alone, editor.drive(list(zip(arrivals, jobs, strict=True))), strict=True):
            assert np.array_equal(a, b), threads


def test_edits_share_the_passes_of_plain_pictures(
    editor: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    runner = editor.engine.runner
    denoise = runner.denoise

    def counted(states: list[object], width: int = 0) -> object:
        widths.append(len(states))
        return denoise(states, width)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "denoise", counted)
    jobs = [editor.job(image) for image in (TEXT, replace(EDIT, strength=1.0), INPAINT)]
    editor.drive([(0, job) for job in jobs])
    assert widths[:3] == [3, 3, 3]
    assert sum(widths) == sum(job.work.plan.num_calls for job in jobs)


def test_a_picture_is_encoded_once_for_all_its_rows_and_then_forgotten(
    editor: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, ...]] = []
    passes = editor.engine.runner.passes
    encoder = passes.encoder

    def counted(*, is_promised: bool) -> Callable[[Tensor, Tensor], Tensor]:
        run = encoder(is_promised=is_promised)

        def each(pixels: Tensor, keep: Tensor) -> Tensor:
            runs.append(tuple(pixels.shape))
            return run(pixels, keep)

        return each

    monkeypatch.setattr(passes, "encoder", counted)
    source = picture(seed=3)
    alone = editor.draw(replace(TEXT, source=picture(seed=3), seed=7))
    jobs = [editor.job(replace(TEXT, source=source, seed=seed)) for seed in (5, 6, 7)]
    drawn = editor.drive([(0, job) for job in jobs])
    assert runs == [(64, 64, 3)] * 2
    assert np.array_equal(drawn[2], alone)
    assert source in editor.engine.runner._pictures._moments
    held = weakref.ref(source)
    del jobs, source
    gc.collect()
    assert held() is None


def test_the_encoders_time_is_a_stage_and_its_steps_are_those_that_ran(
    editor: EngineDriver,
) -> None:
    def value(stage: str) -> float:
        labels = {"model": "editor", "stage": stage}
        return REGISTRY.get_sample_value("predictors_stage_duration_seconds_count", labels) or 0.0

    before = value("vae_encode")
    job = editor.job(replace(EDIT, strength=0.5))
    editor.drive([(0, job)])
    assert value("vae_encode") == before + 1
    assert job.work.plan.num_steps == 2
    editor.draw(TEXT)
    assert value("vae_encode") == before + 1


def test_the_cost_of_an_edit_is_that_of_the_steps_it_runs(editor: EngineDriver) -> None:
    whole = editor.job(TEXT).work.cost
    for strength, calls in ((1.0, 4), (0.5, 2), (0.25, 1), (0.0, 1)):
        request = editor.limits.resolve(replace(EDIT, strength=strength))
        assert editor.preparer.cost(request) == whole * calls / 4
        assert editor.preparer.prepare(request).cost == whole * calls / 4


def test_turbo_calls_an_edits_last_steps_as_the_whole_schedule_does() -> None:
    driver = open_driver(model="turbo-editor", tiers="turbo")
    image = replace(EDIT, num_inference_steps=28, strength=0.6)
    request = driver.limits.resolve(image)
    first = first_step(28, 0.6)
    called = steps_called(request)
    assert len(called) == 28 - first == 17
    assert called[:2] == (True, True)
    assert called[2:] == plan_calls(28)[first + 2 :]
    job = driver.job(replace(image, source=masked(picture())))
    assert job.work.source is not None
    assert driver.engine.admit(job)
    for _ in range(job.work.plan.num_calls):
        driver.engine.step([job])
    edit = driver.state(job).edit
    assert edit is not None
    mask, start = edit.source.mask, edit.source.start
    assert mask is not None
    assert start is not None
    assert torch.equal(driver.state(job).latents[mask == 0], start[mask == 0])
    driver.engine.evict(job)
    few = driver.limits.resolve(replace(image, num_inference_steps=4, strength=0.1))
    assert steps_called(few) == (True,)
    assert driver.draw(replace(image, strength=0.0)).shape == (64, 64, 3)


@pytest.mark.parametrize(("steps", "strength", "first"), [(28, 0.6, 11), (28, 0.01, 27), (4, 0, 4)])
def test_the_first_step_is_rounded_as_diffusers_does(
    steps: int, strength: float, first: int
) -> None:
    assert first_step(steps, strength) == first


def test_an_encoder_that_fails_fails_its_picture_alone(
    editor: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = editor.job(replace(EDIT, source=picture(seed=8))), editor.job(TEXT)
    assert job.work.source is not None
    assert job.work.source.start is not None
    pixels = job.work.source.start.pixels
    passes = editor.engine.runner.passes
    encoder = passes.encoder

    def failing(*, is_promised: bool) -> Callable[[Tensor, Tensor], Tensor]:
        run = encoder(is_promised=is_promised)

        def each(found: Tensor, keep: Tensor) -> Tensor:
            if found is pixels:
                raise RuntimeError("no encoder")
            return run(found, keep)

        return each

    monkeypatch.setattr(passes, "encoder", failing)
    assert editor.engine.admit(other)
    editor.engine.step([other])
    assert editor.engine.admit(job)
    with pytest.raises(RuntimeError, match="no encoder"):
        editor.engine.step([other, job])
    assert editor.steps_done(other) == 1
    editor.engine.evict(job)
    while editor.engine.busy:
        editor.engine.step(editor.engine.active)
    assert other.done
    assert other.error is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {"fill": make_fill(folder / "fill"), "kontext": make_kontext(folder / "kontext")}


def test_fill_and_kontext_rows_are_independent_and_warm(folders: dict[str, Path]) -> None:
    fill = open_driver(folders["fill"], model="fill", slots=2, preview="linear")
    kontext = open_driver(folders["kontext"], model="kontext", slots=2)
    side = kontext.limits.source_size((64, 64), (64, 64))
    reference = replace(TEXT, width=64, height=64, source=picture(*side))
    progress: list[str] = []
    for driver in (fill, kontext):
        driver.engine.warm(lambda shape, *_: progress.append(shape))
    assert progress == [
        "64x64 base x1",
        "64x64 base x2",
        "64x64 base x1",
        "64x64 base x2",
        "64x64 beside 128x128 base x1",
        "64x64 beside 128x128 base x2",
    ]
    pairs = [
        (fill, [replace(INPAINT, seed=1), replace(INPAINT, seed=2, strength=0.5)]),
        (kontext, [reference, replace(reference, seed=2, source=picture(*side, seed=4))]),
        (kontext, [reference, TEXT]),
    ]
    for driver, images in pairs:
        alone = [driver.draw(image) for image in images]
        together = driver.drive([(0, driver.job(image)) for image in images])
        assert not np.array_equal(*alone)
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert kontext.engine.describe()["captures_after_ready"] == 0
    job = kontext.job(reference)
    assert job.work.cost == (job.work.shape.num_text + 16 + 64) * 4


def test_the_warm_up_of_a_damaged_encoder_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = open_driver(model="damaged", slots=1)
    with torch.inference_mode():
        encoder = driver.engine.runner.passes.parts.encoder  # type: ignore[attr-defined]
        encoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Exception, match="warm-up edit of 64x64 are not finite"):
        driver.engine.warm(lambda *_: None)


def test_the_warm_ups_picture_has_both_parts() -> None:
    source = warm_picture(64, 48)
    assert source.mask is not None
    assert source.pixels.shape == (48, 64, 3)
    assert set(np.unique(source.mask)) == {0, 255}
