"""A denoise step reads nothing back and uploads nothing: on a GPU the host only ever launches."""

from __future__ import annotations

from dataclasses import replace

from predictors.diffusion.request import ImageParameters
from tests.diffusion.driver import EngineDriver
from tests.tools.syncs import count_host_syncs

IMAGE = ImageParameters("a red circle", num_inference_steps=6, seed=1)


def test_a_denoise_step_of_mixed_jobs_has_no_host_sync_and_no_upload(driver: EngineDriver) -> None:
    images = [
        IMAGE,
        replace(IMAGE, seed=2, num_inference_steps=4),
        replace(IMAGE, negative_prompt="x"),
    ]
    jobs = [driver.job(image) for image in images]
    for job in jobs:
        assert driver.engine.admit(job)
    driver.engine.step(jobs)  # text encoding and uploads are part of a job's first step
    for _ in range(3):
        with count_host_syncs() as found:
            driver.engine.step(jobs)
        assert found.syncs == 0, dict(found)
    assert {driver.state(job).calls_done for job in jobs} == {4}
    while driver.engine.busy:
        driver.engine.step(driver.engine.active)


def test_the_counter_sees_the_sync_of_a_decoded_picture(driver: EngineDriver) -> None:
    job = driver.job(replace(IMAGE, num_inference_steps=1))
    assert driver.engine.admit(job)
    driver.engine.step([job])
    with count_host_syncs() as found:
        driver.engine.step([job])
    assert job.done
    assert found["Tensor.numpy"] == 1
    assert found.syncs == 1  # the finished picture, and nothing else
