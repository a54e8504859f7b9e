"""Joules of jobs are the device's, split by engine seconds; idle time belongs to no job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.errors import StepFailed
from predictors.serving.energy import EnergySplit
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.settings import QueueSettings
from tests.fakes import EchoEngine, Task, charge


@pytest.fixture(autouse=True)
def no_samples_are_left() -> Iterator[None]:
    yield
    metrics.energy_joules_total.clear()
    metrics.request_energy_joules.clear()


class Engines:
    """Hosts that no thread runs: jobs are admitted, charged and ended by hand."""

    def __init__(self, *models: str) -> None:
        self.hosts = {model: host_of(model) for model in models}
        self.split = EnergySplit(list(self.hosts.values())).split

    def start(self, model: str) -> Job[Task, str]:
        jobs = self.hosts[model].jobs
        job: Job[Task, str] = Job("job", Task("a"))
        jobs.accept([job], is_reserved=False)
        admission = jobs.start_pass(0.0)
        assert jobs.next_job(admission) is job
        assert jobs.start_running(job, 0.0)
        jobs.end_pass(admission)
        return job

    def end(self, model: str, job: Job[Task, str], error: StepFailed | None = None) -> None:
        job.finish() if error is None else job.fail(error)
        self.hosts[model].loop._remove(job)


def host_of(model: str) -> EngineHost[Task, str]:
    host: EngineHost[Task, str] = EngineHost(model, EchoEngine(slots=4), QueueSettings())
    host.loop.load_and_warm()
    return host


def total(model: str) -> float | None:
    return REGISTRY.get_sample_value("predictors_energy_joules_total", {"model": model})


def of_jobs(model: str) -> tuple[float | None, float | None]:
    """Number of jobs, and their joules together."""
    name = "predictors_request_energy_joules"
    count, joules = (
        REGISTRY.get_sample_value(f"{name}_{part}", {"model": model}) for part in ("count", "sum")
    )
    return count, joules


def test_no_series_is_there_before_a_card_told_its_energy() -> None:
    engines = Engines("a")
    engines.end("a", engines.start("a"))
    assert (total("a"), of_jobs("a")) == (None, (None, None))
    engines.split(100, 1)
    assert (total("a"), of_jobs("a")) == (0, (0, 0))


def test_a_job_takes_the_mean_power_of_its_windows_times_its_seconds() -> None:
    engines = Engines("a")
    engines.split(0.1, 1)
    job = engines.start("a")
    charge(job, 0.5)
    engines.split(300, 1)  # half of the second was idle
    charge(job, 1.0)
    engines.split(700, 1)
    assert (total("a"), of_jobs("a")) == (850, (0, 0))
    charge(job, 0.25)
    engines.end("a", job)
    engines.split(400, 1)
    assert (total("a"), of_jobs("a")) == (950, (1, 950))
    engines.split(400, 1)
    assert (total("a"), of_jobs("a")) == (950, (1, 950))


def test_jobs_share_a_window_by_their_seconds_and_the_sum_is_the_cards() -> None:
    engines = Engines("a", "b")
    engines.split(0.1, 1)
    first, second, other = engines.start("a"), engines.start("a"), engines.start("b")
    charge(first, 0.2)
    charge(second, 0.6)
    charge(other, 0.8)  # two engines were charged for more seconds than there were
    engines.end("a", first)
    engines.end("b", other)
    engines.split(800, 1)
    assert (total("a"), total("b")) == (pytest.approx(400), pytest.approx(400))
    assert of_jobs("a") == (1, pytest.approx(100))
    assert of_jobs("b") == (1, pytest.approx(400))


def test_seconds_that_an_engine_takes_back_are_counted_once() -> None:
    engines = Engines("a")
    engines.split(0.1, 1)
    job = engines.start("a")
    charge(job, 1.0)  # in advance
    engines.split(500, 1)
    charge(job, -0.25)
    engines.split(500, 1)
    charge(job, 0.5)
    engines.end("a", job)
    engines.split(500, 1)
    assert of_jobs("a") == (1, 625)  # 1.25 seconds at 500 W


def test_a_failed_job_took_energy_but_is_no_answer() -> None:
    engines = Engines("a")
    engines.split(0.1, 1)
    job = engines.start("a")
    charge(job, 1.0)
    engines.end("a", job, StepFailed("no"))
    engines.split(500, 1)
    assert (total("a"), of_jobs("a")) == (500, (0, 0))
