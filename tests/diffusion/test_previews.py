"""Previews: what they show, that they cost others nothing, and that they are all or nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.compute.device.pacing import DeviceSpan
from predictors.compute.device.placement import Placement
from predictors.diffusion.inputs import preview_calls
from predictors.diffusion.latents import DecodedPicture
from predictors.diffusion.previews import (
    PendingPreview,
    Previews,
    Projection,
    clean_latents,
    fit_projection,
    projected_levels,
    shrunk,
    upscaled,
)
from predictors.diffusion.request import ImageParameters, ImageResult, PartialPicture, StepTaken
from predictors.diffusion.scheduling import Slot, StepCharges
from predictors.serving.turns import SlotHolders
from tests.diffusion.driver import (
    DiffusionJob,
    EngineDriver,
    Pixels,
    drive_model,
    open_driver,
    picture,
)
from tests.diffusion.tiny_model import TinyModel
from tests.tools.syncs import count_host_syncs

CPU = Placement(torch.device("cpu"), torch.float32, "off")
SCENE = ImageParameters("a red circle on a white background", num_inference_steps=12, seed=4)
WATCHED = replace(SCENE, partial_images=3)
TIERS = "lossless,turbo"


@pytest.fixture(scope="module")
def by_vae() -> EngineDriver:
    return open_driver(preview="vae", tiers=TIERS)


@pytest.fixture(scope="module")
def by_projection() -> EngineDriver:
    found = open_driver(preview="linear", tiers=TIERS)
    found.engine.warm(lambda *_: None)
    return found


@pytest.fixture(params=["by_vae", "by_projection"])
def watching(request: pytest.FixtureRequest) -> EngineDriver:
    found: EngineDriver = request.getfixturevalue(request.param)
    return found


def chunks(driver: EngineDriver, image: ImageParameters) -> list[Any]:
    """All that the job of one picture emits, alone."""
    job = driver.job(image)
    driver.drive([(0, job)])
    return job._chunks


def distances(previews: list[Pixels], final: Pixels) -> list[float]:
    """Root mean squares, in levels, at the size of the picture."""
    height, width, _ = final.shape
    away = [upscaled(each, width, height).astype(float) - final for each in previews]
    return [float(np.sqrt((each**2).mean())) for each in away]


# -- what a preview shows --------------------------------------------------------------------------
def mean_distances(driver: EngineDriver, image: ImageParameters) -> NDArray[np.float64]:
    """Of the previews of four pictures, and of a picture of one colour."""
    rows = []
    for seed in range(4):
        *previews, result = chunks(driver, replace(image, seed=seed))
        assert [type(each) for each in previews] == [PartialPicture] * 3
        assert [each.index for each in previews] == [0, 1, 2]
        assert isinstance(result, ImageResult)
        blank = np.full_like(result.pixels, round(result.pixels.mean()))
        rows.append(distances([*(each.pixels for each in previews), blank], result.pixels))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("tier", ["lossless", "turbo"])
def test_previews_come_closer_to_the_picture(by_vae: EngineDriver, tier: str) -> None:
    first, second, third, blank = mean_distances(by_vae, replace(WATCHED, tier=tier))
    assert third < second < first < blank
    assert third < blank / 4


def test_previews_with_true_cfg_come_closer_to_the_picture(by_vae: EngineDriver) -> None:
    guided = replace(WATCHED, negative_prompt="a green square", true_cfg_scale=3.0)
    first, _, third, blank = mean_distances(by_vae, guided)  # it overshoots in between
    assert third < first
    assert third < blank / 4


def test_previews_by_projection_come_closer_to_the_picture(by_projection: EngineDriver) -> None:
    """The embedded autoencoder's latents are no linear code of colours: not by much."""
    first, second, third, blank = mean_distances(by_projection, WATCHED)
    assert third < second < first < blank


def test_the_picture_is_the_same_with_previews(watching: EngineDriver) -> None:
    alone = watching.draw(SCENE)
    assert np.array_equal(chunks(watching, WATCHED)[-1].pixels, alone)
    other = replace(SCENE, seed=9, num_inference_steps=7)
    together = [watching.job(WATCHED), watching.job(other)]
    watching.drive([(0, together[0]), (2, together[1])])
    assert np.array_equal(picture(together[0]), alone)
    assert np.array_equal(picture(together[1]), watching.draw(other))


def test_the_models_own_decoder_shows_the_end_of_the_way(by_vae: EngineDriver) -> None:
    two = replace(WATCHED, num_inference_steps=2)
    preview, result = chunks(by_vae, two)  # one call lies before the last: one preview
    assert preview.pixels.shape == result.pixels.shape
    job = by_vae.job(replace(SCENE, num_inference_steps=1))
    by_vae.drive([(0, job)])  # its only step goes all the way that the first of two points to
    away = preview.pixels.astype(int) - picture(job)
    assert abs(away).max() <= 1  # the modulation of one step is rounded otherwise than that of two


def test_a_projection_is_of_the_latents_size_and_says_how_good_it_is(
    by_projection: EngineDriver, by_vae: EngineDriver
) -> None:
    preview = chunks(by_projection, WATCHED)[0]
    assert preview.pixels.shape == (8, 8, 3)
    shown: Any = by_projection.engine.describe()["previews"]
    assert shown["decoder"] == "linear"
    assert shown["error"] > 0 < shown["spread"]
    assert by_vae.engine.describe()["previews"] == {"decoder": "vae"}


def test_any_models_latents_are_projected() -> None:
    driver = drive_model(TinyModel(), CPU, min_side=32, preview="linear")
    driver.engine.warm(lambda *_: None)
    preview, result = chunks(driver, ImageParameters("x", num_inference_steps=2, partial_images=3))
    assert preview.pixels.shape == (4, 4, 3)
    assert distances([preview.pixels], result.pixels)[0] < 128


def test_clean_latents_are_where_noise_and_velocity_point_to() -> None:
    clean, noise = torch.randn(2, 5, 4)
    for level in (1.0, 0.3):
        noised = (1 - level) * clean + level * noise
        assert torch.allclose(clean_latents(noised, noise - clean, level), clean, atol=1e-6)


def test_a_projection_finds_the_map_that_made_the_pictures() -> None:
    true = torch.tensor([[20.0, 0, 5], [0, 30, 0], [9, 9, 9], [120, 130, 110]])
    latents = [torch.randn(1, 3, 6, 4) for _ in range(2)]
    small = [x[0].permute(1, 2, 0) @ true[:-1] + true[-1] for x in latents]
    pictures = [p.repeat_interleave(8, 0).repeat_interleave(8, 1) for p in small]
    found = fit_projection(latents, [p.round().clamp(0, 255).to(torch.uint8) for p in pictures])
    assert torch.allclose(found, true, atol=1.0)
    levels = projected_levels(found, latents[0])
    assert bool(levels[-1])
    assert (levels[:-1].view(6, 4, 3) - small[0].clamp(0, 255)).abs().max() < 3
    broken = latents[0].clone()
    broken[0, 0, 0, 0] = torch.nan
    assert not bool(projected_levels(found, broken)[-1])


def test_a_channel_that_never_varies_does_not_matter() -> None:
    latents = [torch.randn(1, 3, 4, 4)]
    latents[0][:, 1] = 0.25
    picture_ = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8)
    assert fit_projection(latents, [picture_]).isfinite().all()


def test_a_picture_is_shrunk_by_means_of_blocks() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).view(4, 4, 3)
    means = shrunk(pixels, 2, 2).view(2, 2, 3)
    assert torch.equal(means[0, 1], pixels[:2, 2:].double().mean((0, 1)))


# -- when previews are made ------------------------------------------------------------------------
@given(st.integers(0, 3), st.integers(0, 200))
def test_previews_are_spread_evenly_before_the_last_call(previews: int, calls: int) -> None:
    found = preview_calls(previews, calls)
    assert len(found) == max(0, min(previews, calls - 1))
    gaps = np.diff([0, *found, calls]) if found else np.array([])
    assert all(1 <= call < calls for call in found)
    assert not gaps.size or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_every_step_is_told_where_that_was_asked_for(by_vae: EngineDriver) -> None:
    image = replace(SCENE, num_inference_steps=4, partial_images=1, progress=True)
    found = chunks(by_vae, image)
    assert [each for each in found if isinstance(each, StepTaken)] == [
        StepTaken(i, 4) for i in range(1, 5)
    ]
    kinds = [type(each).__name__ for each in found]
    assert kinds == ["StepTaken", "StepTaken", "PartialPicture", *["StepTaken"] * 2, "ImageResult"]
    turbo = chunks(by_vae, replace(SCENE, num_inference_steps=28, tier="turbo", progress=True))
    assert turbo[-2] == StepTaken(14, 14)  # those that call the model


# -- what they cost --------------------------------------------------------------------------------
def test_a_picture_without_previews_launches_nothing_for_them(
    by_projection: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Previews, "_decode", None)
    monkeypatch.setattr(DeviceSpan, "__init__", counting := _Counting(DeviceSpan.__init__))
    job = by_projection.job(SCENE)
    by_projection.drive([(0, job)])
    assert [type(each) for each in job._chunks] == [ImageResult]
    # one for the text encoders or none, one a denoise step, one a decode or none
    assert counting.count <= 2 * 12 + 2


class _Counting:
    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.count = 0

    def __get__(self, instance: Any, owner: Any) -> Any:
        def call(*args: Any) -> None:
            self.count += 1
            self._wrapped(instance, *args)

        return call


def test_previews_take_no_step_from_others(watching: EngineDriver) -> None:
    def steps_of_both(image: ImageParameters) -> int:
        jobs = [watching.job(image), watching.job(replace(SCENE, seed=2, num_inference_steps=9))]
        for job in jobs:
            assert watching.engine.admit(job)
        count = 0
        while watching.engine.busy:
            watching.engine.step(watching.engine.active)
            count += 1
        return count

    assert steps_of_both(WATCHED) == steps_of_both(SCENE)


def test_a_preview_is_launched_without_waiting_for_the_device(watching: EngineDriver) -> None:
    job = watching.job(WATCHED)
    assert watching.engine.admit(job)
    for _ in range(2):
        watching.engine.step([job])
    watching.engine.step([job])  # its first preview follows this one
    (first,) = job._chunks
    for _ in range(2):
        watching.engine.step([job])
    with count_host_syncs() as found:
        watching.engine.step([job])  # and its second this one
    assert len(job._chunks) == 2
    assert first.index == 0
    assert found.syncs == found["Tensor.numpy"] == 1, dict(found)  # of a copy that is done
    watching.engine.evict(job)


def test_the_seconds_of_a_preview_are_its_callers(by_vae: EngineDriver) -> None:
    job = by_vae.job(WATCHED)
    by_vae.drive([(0, job)])
    stages = [name for name, *_ in job.stages]
    assert stages.count("preview") == 3
    spent = sum(end - start for name, start, end, _ in job.stages if name == "preview")
    assert job.used_s >= spent > 0


# -- all or nothing --------------------------------------------------------------------------------
def test_a_preview_that_raises_advances_no_job(
    watching: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, other = watching.job(replace(WATCHED, num_inference_steps=2)), watching.job(SCENE)
    for job in (watched, other):
        assert watching.engine.admit(job)
    with monkeypatch.context() as broken:
        broken.setattr(Previews, "_decode", lambda *_: torch.ones(1)[7])
        with pytest.raises(IndexError):
            watching.engine.step([watched, other])
        assert [watching.steps_done(job) for job in (watched, other)] == [0, 0]
        assert not watched._chunks
        watching.engine.step([other])  # the host finds out whose it is
    watching.engine.step([watched, other])
    assert [type(each) for each in watched._chunks] == [PartialPicture]
    assert [watching.steps_done(job) for job in (watched, other)] == [1, 2]
    for job in (watched, other):
        watching.engine.evict(job)


class _Copy:
    """A transfer that is done when the test says so."""

    def __init__(self, *, is_finite: bool = True) -> None:
        self.is_done = False
        self._is_finite = is_finite

    def result(self) -> DecodedPicture:
        assert self.is_done
        return DecodedPicture(np.zeros((1, 1, 3), np.uint8), self._is_finite)


class Flying(NamedTuple):
    job: DiffusionJob
    copy: _Copy


@dataclass
class Sky:
    """Previews on their way, two of each of two jobs."""

    previews: Previews
    flying: list[Flying]

    def seen(self, job: DiffusionJob) -> list[int]:
        return [each.index for each in job._chunks if isinstance(each, PartialPicture)]


@pytest.fixture
def sky(by_vae: EngineDriver) -> Sky:
    previews = Previews("previews", "vae", CPU, StepCharges(SlotHolders()))
    jobs = [by_vae.job(SCENE), by_vae.job(SCENE)]
    flying = []
    for index in range(2):
        for job in jobs:
            span, copy = DeviceSpan(CPU), _Copy()
            with span:
                pass
            flying.append(Flying(job, copy))
            pending: Any = PendingPreview(Slot(job), index, copy, span)  # type: ignore[arg-type]
            previews.commit([], [pending])
    return Sky(previews, flying)


def test_previews_are_passed_on_in_order_once_they_are_there(sky: Sky) -> None:
    one, other = sky.flying[0].job, sky.flying[1].job
    sky.previews.deliver()
    assert (sky.seen(one), sky.seen(other)) == ([], [])
    sky.flying[2].copy.is_done = True  # a later one: copies of one stream end in order
    sky.flying[0].copy.is_done = True
    sky.previews.deliver()
    assert (sky.seen(one), sky.seen(other)) == ([0], [])
    for each in sky.flying:
        each.copy.is_done = True
    sky.previews.deliver()
    assert (sky.seen(one), sky.seen(other)) == ([0, 1], [0, 1])


def test_previews_of_a_caller_who_left_are_dropped(sky: Sky) -> None:
    one, other = sky.flying[0].job, sky.flying[1].job
    sky.previews.drop(one)
    for each in sky.flying:
        each.copy.is_done = True
    sky.previews.deliver()
    assert (sky.seen(one), sky.seen(other)) == ([], [0, 1])


def test_a_preview_that_is_not_finite_is_not_shown(sky: Sky) -> None:
    sky.flying[0].copy._is_finite = False
    for each in sky.flying:
        each.copy.is_done = True
    sky.previews.deliver()
    assert sky.seen(sky.flying[0].job) == [1]


@pytest.mark.parametrize(
    ("decoder", "is_cuda", "error", "chosen"),
    [
        ("auto", False, None, "vae"),
        ("auto", True, 20.0, "linear"),
        ("auto", True, 21.0, "vae"),
        ("linear", False, 99.0, "linear"),
        ("linear", True, 99.0, "linear"),
        ("vae", True, None, "vae"),
    ],
)
def test_the_decoder_is_chosen_by_setting_device_and_error(
    decoder: str, is_cuda: bool, error: float | None, chosen: str
) -> None:
    placement = replace(CPU, device=torch.device("cuda" if is_cuda else "cpu"))
    previews = Previews("x", decoder, placement, StepCharges(SlotHolders()))
    assert previews.may_project == (error is not None)
    if error is not None:
        previews.project_by(Projection(torch.zeros(4, 3), error, 40.0))
    assert previews.describe()["decoder"] == chosen
