"""Slots and steps: all or nothing, no job starves, one decode per step, and the metrics."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.diffusion.predictor import SERIES
from predictors.diffusion.request import ImageParameters
from predictors.serving.engine import StickyDeviceError
from predictors.serving.job import Job
from tests.diffusion.driver import DiffusionJob, EngineDriver, open_driver, picture

RED = ImageParameters("a red circle", num_inference_steps=3, seed=1)


@pytest.fixture(autouse=True)
def empty(driver: EngineDriver) -> None:
    for job in driver.engine.active:
        driver.engine.evict(job)


def poison(driver: EngineDriver, image: ImageParameters = RED) -> DiffusionJob:
    """A job whose tokens are outside the vocabulary, so that the real text encoder raises."""
    job = driver.job(image, "poison")
    (prompt,) = job.work.prompts
    clip_ids, t5_ids = prompt.ids
    bad = replace(prompt, key=("poison", 16), ids=(clip_ids, torch.full_like(t5_ids, 10**6)))
    return Job("poison", replace(job.work, prompts=(bad,)))


def value(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(f"predictors_{name}", {"model": "counted", **labels})
    return 0.0 if found is None else found


def test_admission_stops_at_the_slots_and_eviction_frees_one(driver: EngineDriver) -> None:
    jobs = [driver.job(RED, str(i)) for i in range(driver.engine.slots + 1)]
    assert [driver.engine.admit(job) for job in jobs] == [True] * driver.engine.slots + [False]
    assert driver.engine.active == jobs[:-1]
    driver.engine.evict(jobs[1])
    driver.engine.evict(jobs[1])
    assert driver.engine.admit(jobs[-1])
    assert driver.engine.active == [jobs[0], *jobs[2:]]
    assert driver.engine.busy


def test_admit_computes_nothing(driver: EngineDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = driver.engine.runner
    for name in ("encode", "start", "denoise"):
        monkeypatch.setattr(runner, name, None)
    assert driver.engine.admit(driver.job(RED))


def test_a_step_that_raises_advances_no_job(driver: EngineDriver) -> None:
    alone = driver.draw(RED)
    jobs = [driver.job(RED), poison(driver), driver.job(replace(RED, seed=2))]
    for job in jobs[:2]:
        assert driver.engine.admit(job)
    driver.engine.step(jobs[:1])
    before = driver.state(jobs[0]).latents.clone()
    assert driver.engine.admit(jobs[2])
    for _ in range(2):  # the host tries again, and in halves
        with pytest.raises(IndexError):
            driver.engine.step(driver.engine.active)
        assert driver.steps_done(jobs[0]) == 1
        assert torch.equal(driver.state(jobs[0]).latents, before)
        assert not any(job.done or job._chunks for job in jobs)
    driver.engine.evict(jobs[1])
    while driver.engine.busy:
        driver.engine.step(driver.engine.active)
    assert np.array_equal(picture(jobs[0]), alone)
    assert np.array_equal(picture(jobs[2]), driver.draw(replace(RED, seed=2)))


def test_a_decode_that_raises_undoes_the_denoise_step_beside_it(
    driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = driver.job(replace(RED, num_inference_steps=1)), driver.job(RED)
    for job in (first, second):
        assert driver.engine.admit(job)
    driver.engine.step(driver.engine.active)
    decoder = driver.engine.runner.passes.parts.decoder
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "forward", lambda *_, **__: torch.ones(1)[7])
        with pytest.raises(IndexError):
            driver.engine.step(driver.engine.active)
    assert steps_taken(driver, [first, second]) == [1, 1]
    assert not first.done
    driver.engine.step(driver.engine.active)
    assert first.done
    assert driver.steps_done(second) == 2


def test_a_step_of_some_jobs_leaves_the_others_where_they_are(driver: EngineDriver) -> None:
    jobs = [driver.job(RED, str(i)) for i in range(3)]
    for job in jobs:
        assert driver.engine.admit(job)
    driver.engine.step(jobs[1:2])
    driver.engine.step([])
    assert driver.steps_done(jobs[1]) == 1
    assert driver.steps_done(jobs[0]) == 0


def test_an_evicted_job_is_not_stepped(driver: EngineDriver) -> None:
    job = driver.job(RED)
    assert driver.engine.admit(job)
    driver.engine.evict(job)
    driver.engine.step([job])
    assert not driver.engine.busy


def test_four_pictures_finished_together_are_decoded_one_per_step(driver: EngineDriver) -> None:
    jobs = [driver.job(replace(RED, seed=i, num_inference_steps=1), str(i)) for i in range(4)]
    for job in jobs:
        assert driver.engine.admit(job)
    done = []
    for _ in range(5):
        driver.engine.step(driver.engine.active)
        done.append(sum(job.done for job in jobs))
    assert done == [0, 1, 2, 3, 4]


def test_denoising_goes_on_in_steps_that_decode(driver: EngineDriver) -> None:
    short = driver.job(replace(RED, num_inference_steps=1))
    long = driver.job(replace(RED, num_inference_steps=4))
    for job in (short, long):
        assert driver.engine.admit(job)
    driver.engine.step(driver.engine.active)
    driver.engine.step(driver.engine.active)
    assert short.done
    assert driver.steps_done(long) == 2


def test_new_pictures_start_one_per_step_unless_none_is_denoising(driver: EngineDriver) -> None:
    jobs = [driver.job(replace(RED, seed=i, num_inference_steps=6), str(i)) for i in range(4)]
    assert driver.engine.admit(jobs[0])
    driver.engine.step(driver.engine.active)
    for job in jobs[1:]:
        assert driver.engine.admit(job)
    started = []
    for _ in range(3):
        driver.engine.step(driver.engine.active)
        started.append(sum(driver.steps_done(job) > 0 for job in jobs))
    assert started == [2, 3, 4]
    for job in jobs:
        driver.engine.evict(job)
    again = [driver.job(replace(RED, seed=i), str(i)) for i in range(4)]
    for job in again:
        assert driver.engine.admit(job)
    driver.engine.step(driver.engine.active)
    assert steps_taken(driver, again) == [1, 1, 1, 1]


@pytest.fixture
def impatient_driver(monkeypatch: pytest.MonkeyPatch) -> EngineDriver:
    """An age limit of zero, and a clock that goes on by a second with each call."""
    ticks = itertools.count()
    monkeypatch.setattr(
        "predictors.diffusion.engine.time", SimpleNamespace(monotonic=lambda: float(next(ticks)))
    )
    return open_driver(age_limit_s=0.0)


def steps_taken(driver: EngineDriver, jobs: Sequence[DiffusionJob]) -> list[int]:
    return [driver.steps_done(job) for job in jobs]


def test_the_least_remaining_work_goes_first(driver: EngineDriver) -> None:
    long, short = (driver.job(replace(RED, num_inference_steps=n, width=96)) for n in (6, 3))
    small = driver.job(replace(RED, num_inference_steps=4))
    jobs = [long, short, small]
    for job in jobs:
        assert driver.engine.admit(job)
    driver.engine.step(jobs)
    assert steps_taken(driver, jobs) == [1, 1, 0]  # three steps of 40 tokens before four of 32
    for _ in range(2):
        driver.engine.step(jobs)
    assert steps_taken(driver, jobs) == [3, 3, 0]  # the long one shares the short one's passes
    driver.engine.step(jobs)
    assert short.done
    assert steps_taken(driver, [long, small]) == [4, 0]  # and has less left by now
    while driver.engine.busy:
        driver.engine.step(driver.engine.active)


def test_sizes_alternate_once_they_have_waited(impatient_driver: EngineDriver) -> None:
    driver = impatient_driver
    wide = [driver.job(replace(RED, num_inference_steps=6, seed=i)) for i in range(3)]
    jobs = [*wide, driver.job(replace(RED, num_inference_steps=6, width=96))]
    for job in jobs:
        assert driver.engine.admit(job)
    for _ in range(8):
        driver.engine.step(jobs)
        *same, lone = steps_taken(driver, jobs)
        assert len(set(same)) == 1
    assert same[0] + lone == 8
    assert min(same[0], lone) >= 3


def test_a_stream_of_new_jobs_of_one_size_does_not_starve_another(
    impatient_driver: EngineDriver,
) -> None:
    driver = impatient_driver
    lone = driver.job(replace(RED, num_inference_steps=5, width=96))
    others = [(i // 3, driver.job(replace(RED, seed=i))) for i in range(30)]
    num_steps, waiting = 0, list(others)
    assert driver.engine.admit(lone)
    while not lone.done:
        while waiting and driver.engine.admit(waiting[0][1]):
            waiting.pop(0)
        driver.engine.step(driver.engine.active)
        num_steps += 1
    assert num_steps <= 5 * driver.engine.slots + 1


def test_guided_pictures_share_a_pass_within_its_rows(
    driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = driver.engine.runner
    rows: list[int] = []
    denoise = runner.denoise

    def spy(states: Any) -> Any:
        rows.append(sum(state.num_rows for state in states))
        return denoise(states)

    guided = replace(RED, negative_prompt="blue")
    alone = driver.draw(guided)
    monkeypatch.setattr(runner, "denoise", spy)
    jobs = [
        driver.job(guided),
        driver.job(replace(guided, seed=5)),
        driver.job(RED),
        driver.job(guided),
    ]
    pictures = driver.drive([(0, job) for job in jobs])
    assert max(rows) == 4
    assert np.array_equal(pictures[0], alone)
    assert np.array_equal(pictures[3], alone)


def test_a_guided_picture_is_drawn_with_a_single_slot(driver: EngineDriver) -> None:
    narrow = open_driver(slots=1)
    guided = replace(RED, negative_prompt="blue")
    assert np.array_equal(narrow.draw(guided), driver.draw(guided))


def test_a_lost_device_raises_sticky_device_error(
    driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    job = driver.job(RED)
    assert driver.engine.admit(job)
    monkeypatch.setattr(driver.engine.runner, "denoise", lost)
    with pytest.raises(StickyDeviceError):
        driver.engine.step([job])


def test_stages_steps_and_pictures_are_counted() -> None:
    driver = open_driver(model="counted", prompt_cache_bytes=20_000)
    metrics.register_model("counted", SERIES)
    guided = replace(RED, negative_prompt="blue", num_inference_steps=2)
    driver.drive(
        [(0, driver.job(RED)), (0, driver.job(guided)), (0, driver.job(replace(RED, width=272)))]
    )
    assert value("denoise_steps_total") == 3 + 2 + 3
    assert value("images_generated_total", resolution="le_256", tier="lossless") == 3
    assert value("denoise_step_duration_seconds_count", resolution="le_256") == 6
    assert value("image_pixels_sum") == 2 * 64 * 64 + 272 * 64
    assert value("inference_steps_sum") == 8
    assert value("time_to_first_image_seconds_count") == 3
    for stage, count in (("text_encode", 3), ("denoise", 3), ("vae_decode", 3)):
        assert value("stage_duration_seconds_count", stage=stage) == count, stage
    for result, count in (("hit", 1), ("miss", 3), ("evict", 2)):
        found = value("cache_requests_total", cache="prompt_embedding", result=result)
        assert found == count, result


def test_a_prompt_is_encoded_once_per_length(
    driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = driver.engine.runner
    encoded = []
    encode = runner.encode
    monkeypatch.setattr(
        runner,
        "encode",
        lambda prompt, *more: encoded.append(prompt.num_tokens) or encode(prompt, *more),
    )
    image = replace(RED, prompt="never seen before", num_inference_steps=1)
    first = driver.draw(image)
    assert np.array_equal(driver.draw(image), first)
    driver.draw(replace(image, max_sequence_length=24))
    assert encoded == [16, 24]


def test_close_drops_jobs_and_cached_prompts() -> None:
    driver = open_driver(model="closing")
    driver.draw(RED)
    assert driver.engine.admit(driver.job(RED))
    driver.engine.close()
    assert not driver.engine.busy
    assert driver.engine.describe()["caches"] == {"prompt_embedding": {"entries": 0, "bytes": 0}}
