"""A denoise step reads nothing back and uploads nothing: on a GPU the host only ever launches."""

from __future__ import annotations

from dataclasses import replace

from predictors.diffusion.request import Wish
from tests.diffusion.room import Room
from tests.tools.syncs import count_host_syncs

WISH = Wish("a red circle", num_inference_steps=6, seed=1)


def test_a_denoise_step_of_mixed_jobs_has_no_host_sync_and_no_upload(room: Room) -> None:
    wishes = [WISH, replace(WISH, seed=2, num_inference_steps=4), replace(WISH, negative_prompt="")]
    jobs = [room.job(wish) for wish in wishes]
    for job in jobs:
        assert room.engine.admit(job)
    room.engine.step(jobs)  # text encoding and uploads belong to a job's first turn
    for _ in range(3):
        with count_host_syncs() as found:
            room.engine.step(jobs)
        assert found.syncs == 0, dict(found)
    assert {room.canvas(job).index for job in jobs} == {4}
    while room.engine.busy:
        room.engine.step(room.engine.active)


def test_the_counter_does_see_a_jobs_last_turn(room: Room) -> None:
    job = room.job(replace(WISH, num_inference_steps=1))
    assert room.engine.admit(job)
    room.engine.step([job])
    with count_host_syncs() as found:
        room.engine.step([job])
    assert job.done
    assert found["Tensor.numpy"] == 1
    assert found.syncs == 1  # the finished picture, and nothing else
