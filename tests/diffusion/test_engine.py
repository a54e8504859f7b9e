"""Slots and turns: all or nothing, nobody starves, one decode per turn, and what is counted."""

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
from predictors.diffusion.metrics import SERIES
from predictors.diffusion.request import Wish
from predictors.errors import InvalidRequest
from predictors.serving.engine import StickyDeviceError
from predictors.serving.job import Job
from tests.diffusion.room import FluxJob, Room, open_room, picture

RED = Wish("a red circle", num_inference_steps=3, seed=1)


@pytest.fixture(autouse=True)
def empty(room: Room) -> None:
    for job in room.engine.active:
        room.engine.evict(job)


def poison(room: Room, wish: Wish = RED) -> FluxJob:
    """A job whose tokens are outside the vocabulary: the real text encoder raises."""
    job = room.job(wish, "poison")
    (prompt,) = job.work.prompts
    bad = replace(prompt, key=("poison", 16), t5_ids=torch.full_like(prompt.t5_ids, 10**6))
    return Job("poison", replace(job.work, prompts=(bad,)))


def value(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(f"predictors_{name}", {"model": "counted", **labels})
    return 0.0 if found is None else found


def test_admission_stops_at_the_slots_and_eviction_frees_one(room: Room) -> None:
    jobs = [room.job(RED, str(i)) for i in range(room.engine.slots + 1)]
    assert [room.engine.admit(job) for job in jobs] == [True] * room.engine.slots + [False]
    assert room.engine.active == jobs[:-1]
    room.engine.evict(jobs[1])
    room.engine.evict(jobs[1])
    assert room.engine.admit(jobs[-1])
    assert room.engine.active == [jobs[0], *jobs[2:]]
    assert room.engine.busy


def test_admit_computes_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = room.engine._runner
    for name in ("encode", "begin", "denoise"):
        monkeypatch.setattr(runner, name, None)
    assert room.engine.admit(room.job(RED))


def test_a_turn_that_raises_has_advanced_nobody(room: Room) -> None:
    alone = room.draw(RED)
    jobs = [room.job(RED), poison(room), room.job(replace(RED, seed=2))]
    for job in jobs[:2]:
        assert room.engine.admit(job)
    room.engine.step(jobs[:1])
    before = room.canvas(jobs[0]).latents.clone()
    assert room.engine.admit(jobs[2])
    for _ in range(2):  # the host tries again, and in halves
        with pytest.raises(IndexError):
            room.engine.step(room.engine.active)
        assert room.canvas(jobs[0]).index == 1
        assert torch.equal(room.canvas(jobs[0]).latents, before)
        assert not any(job.done or job._chunks for job in jobs)
    room.engine.evict(jobs[1])
    while room.engine.busy:
        room.engine.step(room.engine.active)
    assert np.array_equal(picture(jobs[0]), alone)
    assert np.array_equal(picture(jobs[2]), room.draw(replace(RED, seed=2)))


def test_a_decode_that_raises_holds_back_the_denoise_of_its_turn(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = room.job(replace(RED, num_inference_steps=1)), room.job(RED)
    for job in (first, second):
        assert room.engine.admit(job)
    room.engine.step(room.engine.active)
    assert room.engine._runner is not None
    decoder = room.engine._runner._parts.decoder
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "forward", lambda *_, **__: torch.ones(1)[7])
        with pytest.raises(IndexError):
            room.engine.step(room.engine.active)
    assert (room.canvas(first).index, room.canvas(second).index) == (1, 1)
    assert not first.done
    room.engine.step(room.engine.active)
    assert first.done
    assert room.canvas(second).index == 2


def test_a_step_of_some_jobs_leaves_the_others_where_they_are(room: Room) -> None:
    jobs = [room.job(RED, str(i)) for i in range(3)]
    for job in jobs:
        assert room.engine.admit(job)
    room.engine.step(jobs[1:2])
    room.engine.step([])
    assert room.canvas(jobs[1]).index == 1
    assert room.engine._slots[jobs[0]].canvas is None


def test_an_evicted_job_is_not_stepped(room: Room) -> None:
    job = room.job(RED)
    assert room.engine.admit(job)
    room.engine.evict(job)
    room.engine.step([job])
    assert not room.engine.busy


def test_four_pictures_done_together_are_decoded_one_per_turn(room: Room) -> None:
    jobs = [room.job(replace(RED, seed=i, num_inference_steps=1), str(i)) for i in range(4)]
    for job in jobs:
        assert room.engine.admit(job)
    done = []
    for _ in range(5):
        room.engine.step(room.engine.active)
        done.append(sum(job.done for job in jobs))
    assert done == [0, 1, 2, 3, 4]


def test_denoising_goes_on_in_the_turns_that_decode(room: Room) -> None:
    short = room.job(replace(RED, num_inference_steps=1))
    long = room.job(replace(RED, num_inference_steps=4))
    for job in (short, long):
        assert room.engine.admit(job)
    room.engine.step(room.engine.active)
    room.engine.step(room.engine.active)
    assert short.done
    assert room.canvas(long).index == 2


def test_newcomers_join_one_per_turn_unless_nobody_is_denoising(room: Room) -> None:
    jobs = [room.job(replace(RED, seed=i, num_inference_steps=6), str(i)) for i in range(4)]
    assert room.engine.admit(jobs[0])
    room.engine.step(room.engine.active)
    for job in jobs[1:]:
        assert room.engine.admit(job)
    begun = []
    for _ in range(3):
        room.engine.step(room.engine.active)
        begun.append(sum(room.engine._slots[job].canvas is not None for job in jobs))
    assert begun == [2, 3, 4]
    for job in jobs:
        room.engine.evict(job)
    again = [room.job(replace(RED, seed=i), str(i)) for i in range(4)]
    for job in again:
        assert room.engine.admit(job)
    room.engine.step(room.engine.active)
    assert [room.canvas(job).index for job in again] == [1, 1, 1, 1]


@pytest.fixture
def impatient_room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Nobody waits longer than no time, and each look at the clock takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(
        "predictors.diffusion.engine.time", SimpleNamespace(monotonic=lambda: float(next(ticks)))
    )
    return open_room(age_limit_s=0.0)


def steps_taken(room: Room, jobs: Sequence[FluxJob]) -> list[int]:
    canvases = [room.engine._slots[job].canvas for job in jobs]
    return [canvas.index if canvas else 0 for canvas in canvases]


def test_whoever_has_least_to_do_goes_first(room: Room) -> None:
    long, short = (room.job(replace(RED, num_inference_steps=n, width=96)) for n in (6, 3))
    small = room.job(replace(RED, num_inference_steps=4))
    jobs = [long, short, small]
    for job in jobs:
        assert room.engine.admit(job)
    room.engine.step(jobs)
    assert steps_taken(room, jobs) == [1, 1, 0]  # three steps of 40 tokens before four of 32
    for _ in range(2):
        room.engine.step(jobs)
    assert steps_taken(room, jobs) == [3, 3, 0]  # the long one shares the short one's passes
    room.engine.step(jobs)
    assert short.done
    assert steps_taken(room, [long, small]) == [4, 0]  # and has less left by now
    while room.engine.busy:
        room.engine.step(room.engine.active)


def test_sizes_take_turns_once_they_have_waited(impatient_room: Room) -> None:
    room = impatient_room
    wide = [room.job(replace(RED, num_inference_steps=6, seed=i)) for i in range(3)]
    jobs = [*wide, room.job(replace(RED, num_inference_steps=6, width=96))]
    for job in jobs:
        assert room.engine.admit(job)
    for _ in range(8):
        room.engine.step(jobs)
        *same, lone = steps_taken(room, jobs)
        assert len(set(same)) == 1
    assert same[0] + lone == 8
    assert min(same[0], lone) >= 3


def test_a_stream_of_new_jobs_of_one_size_does_not_hold_up_another(impatient_room: Room) -> None:
    room = impatient_room
    lone = room.job(replace(RED, num_inference_steps=5, width=96))
    crowd = [(i // 3, room.job(replace(RED, seed=i))) for i in range(30)]
    turns, waiting = 0, list(crowd)
    assert room.engine.admit(lone)
    while not lone.done:
        while waiting and room.engine.admit(waiting[0][1]):
            waiting.pop(0)
        room.engine.step(room.engine.active)
        turns += 1
    assert turns <= 5 * room.engine.slots + 1


def test_guided_pictures_share_a_pass_within_its_rows(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = room.engine._runner
    assert runner is not None
    rows: list[int] = []
    denoise = runner.denoise

    def spy(canvases: Any) -> Any:
        rows.append(sum(canvas.num_rows for canvas in canvases))
        return denoise(canvases)

    guided = replace(RED, negative_prompt="blue")
    alone = room.draw(guided)
    monkeypatch.setattr(runner, "denoise", spy)
    jobs = [room.job(guided), room.job(replace(guided, seed=5)), room.job(RED), room.job(guided)]
    pictures = room.drive([(0, job) for job in jobs])
    assert max(rows) == 4
    assert np.array_equal(pictures[0], alone)
    assert np.array_equal(pictures[3], alone)


def test_a_guided_picture_is_drawn_with_a_single_slot(room: Room) -> None:
    narrow = open_room(slots=1)
    guided = replace(RED, negative_prompt="blue")
    assert np.array_equal(narrow.draw(guided), room.draw(guided))


def test_a_lost_device_is_told_apart_from_a_job_that_failed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    job = room.job(RED)
    assert room.engine.admit(job)
    monkeypatch.setattr(room.engine._runner, "denoise", lost)
    with pytest.raises(StickyDeviceError):
        room.engine.step([job])


def test_each_stage_step_and_picture_is_counted() -> None:
    room = open_room(model="counted", prompt_cache_bytes=20_000)
    metrics.register_model("counted", SERIES)
    guided = replace(RED, negative_prompt="blue", num_inference_steps=2)
    room.drive([(0, room.job(RED)), (0, room.job(guided)), (0, room.job(replace(RED, width=272)))])
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


def test_a_prompt_is_encoded_once_per_length(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = room.engine._runner
    assert runner is not None
    encoded = []
    encode = runner.encode
    monkeypatch.setattr(
        runner, "encode", lambda *ids: encoded.append(ids[1].shape[1]) or encode(*ids)
    )
    wish = replace(RED, prompt="never seen before", num_inference_steps=1)
    first = room.draw(wish)
    assert np.array_equal(room.draw(wish), first)
    room.draw(replace(wish, max_sequence_length=24))
    assert encoded == [16, 24]


def test_a_shape_outside_the_promise_is_refused_with_the_list() -> None:
    room = open_room(sizes="64x64,96x64", unpromised="refuse", model="strict")
    serving = open_room(sizes="64x64,96x64", unpromised="serve", model="loose")
    other = serving.job(replace(RED, width=80)).work
    longer = serving.job(replace(RED, max_sequence_length=24)).work
    serving.engine.validate(other)
    serving.engine.validate(longer)
    room.engine.validate(serving.job(replace(RED, width=96)).work)
    with pytest.raises(InvalidRequest, match="80x64 is not served here; promised are 64x64, 96x64"):
        room.engine.validate(other)
    with pytest.raises(InvalidRequest, match=r"max_sequence_length 24.*promised is 16"):
        room.engine.validate(longer)


def test_close_forgets_everything() -> None:
    room = open_room(model="closing")
    room.draw(RED)
    assert room.engine.admit(room.job(RED))
    room.engine.close()
    assert not room.engine.busy
    assert room.engine._prompts.num_bytes == 0
