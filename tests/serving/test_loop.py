"""The engine loop: few frames above `engine.step`, and a failed step is retried in halves until
exactly the jobs that fail alone are found.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import OutOfMemory, StepFailed
from predictors.serving import loop
from predictors.serving.engine import StickyDeviceError, is_out_of_memory
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.serving.loop import try_call
from predictors.serving.width_cap import GOOD_ROUNDS, WidthCap
from predictors.settings import QueueSettings
from tests.fakes import OutOfMemoryError, ScriptedEngine, Task, answer, failure, unread
from tests.serving.conftest import MakeHost, sample, submit

NUMBERS = count(1)
TaskJob = Job[Task, str]


class Bench:
    """A host without threads whose `jobs` all hold a slot; `step` steps them once."""

    def __init__(self, jobs: int, steps: int = 1) -> None:
        self.engine = ScriptedEngine(slots=jobs, gated=False)
        self.host: EngineHost[Task, str] = EngineHost(
            f"loop-{next(NUMBERS)}", self.engine, QueueSettings(capacity=jobs)
        )
        self.host.loop.load_and_warm()
        self.jobs = submit(self.host, *(Task(str(i), steps) for i in range(jobs)))

    def poison(self, error: BaseException, *jobs: int) -> None:
        self.engine.poison.update({str(job): error for job in jobs})

    def splits(self) -> tuple[int, int]:
        """Steps that were halved: out of memory, and for any other error."""
        name = "predictors_batch_splits_total"
        oom, other = (sample(name, self.host, reason=reason) for reason in ("oom", "other"))
        return int(oom), int(other)

    def step(self) -> list[int]:
        """Step once; returns the number of jobs in each call of `engine.step`."""
        taken = len(self.engine.steps)
        assert self.host.loop.run_once()
        return [len(names) for names in self.engine.steps[taken:]]


@given(st.integers(1, 40), st.sets(st.integers(0, 39)), st.integers(1, 64))
def test_exactly_the_culprits_fail_and_all_others_advance_once(
    number: int, culprits: set[int], width: int
) -> None:
    bench = Bench(number, steps=9)
    bench.poison(ValueError("poison"), *culprits)
    bench.engine.oom_width = width
    widths = bench.step()
    assert len(widths) <= 2 * number - 1
    bad = {str(i) for i in culprits}
    tried = [set(names) for names in bench.engine.steps if len(names) > 1]
    too_wide = [names for names in tried if len(names) > width and not names & bad]
    assert bench.splits() == (len(too_wide), sum(bool(names & bad) for names in tried))
    for i, job in enumerate(bench.jobs):
        assert (job in bench.engine.active) == (i not in culprits)
        assert isinstance(job.error, StepFailed) == (i in culprits)
        assert unread(job) == ([] if i in culprits else [f"{i}:1"])
    bench.host.stop()


def test_one_culprit_of_eight_is_found_in_three_halvings() -> None:
    bench = Bench(8)
    bench.poison(ValueError("poison"), 5)
    assert bench.step() == [8, 4, 4, 2, 1, 1, 2]
    assert isinstance(failure(bench.jobs[5]), StepFailed)
    assert bench.splits() == (0, 3)


def test_a_step_that_succeeds_is_taken_once() -> None:
    bench = Bench(8)
    assert bench.step() == [8]
    assert bench.splits() == (0, 0)


def test_after_running_out_of_memory_steps_stay_narrow_though_a_job_leaves() -> None:
    bench = Bench(8, steps=4)
    bench.engine.oom_width = 3
    assert bench.step() == [8, 4, 2, 2, 4, 2, 2]
    assert bench.step() == [2, 2, 2, 2]
    assert sample("predictors_step_width_cap", bench.host) == 2
    bench.jobs[0].cancel()
    assert bench.step() == [2, 2, 2, 1]


def test_the_cap_rises_after_good_rounds_and_is_gone_when_all_fit_again() -> None:
    bench = Bench(4, steps=10**6)
    bench.engine.oom_width = 1
    assert bench.step() == [4, 2, 1, 1, 2, 1, 1]
    bench.engine.oom_width = None  # another program has left the device
    widths = [bench.step() for _ in range(3 * GOOD_ROUNDS)]
    assert widths[GOOD_ROUNDS - 1 : GOOD_ROUNDS + 1] == [[1, 1, 1, 1], [2, 2]]
    assert widths[2 * GOOD_ROUNDS] == [3, 1]
    assert bench.step() == [4]
    assert sample("predictors_step_width_cap", bench.host) == 0
    assert bench.splits() == (3, 0)


@given(st.integers(2, 9), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_whatever_fits_steps_out_of_memory_become_rare(most: int, fits: list[int]) -> None:
    """However the memory changes: of the last 512 rounds at one size at most five fail."""
    cap = WidthCap(most, lambda width: None)
    for width in fits:
        failures: list[int] = []
        for i in range(600):
            groups = cap.groups(range(most))[::-1]
            while groups:
                group = groups.pop()
                if len(group) <= width:
                    cap.note_success(len(group))
                    continue
                cap.note_failure(len(group))
                failures.append(i)
                half = len(group) // 2
                groups += [group[half:], group[:half]]
            cap.end_round(most)
        assert sum(i >= 88 for i in set(failures)) <= 5
        assert (cap.width or most) <= width + 1


def test_each_failed_try_of_a_wider_step_doubles_the_rounds_until_the_next() -> None:
    bench = Bench(4, steps=10**6)
    bench.engine.oom_width = 2
    assert bench.step() == [4, 2, 2]
    failures = [i for i in range(8 * GOOD_ROUNDS) if len(bench.step()) > 2]
    # a try of three jobs fails, and the next one takes twice as many rounds
    assert failures == [GOOD_ROUNDS, 3 * GOOD_ROUNDS + 1, 7 * GOOD_ROUNDS + 2]


def test_a_job_that_is_too_large_alone_does_not_make_the_others_narrow() -> None:
    bench = Bench(8, steps=2)
    bench.poison(OutOfMemoryError("giant"), 3)
    bench.step()
    assert isinstance(failure(bench.jobs[3]), OutOfMemory)
    assert bench.step() == [7]


def test_a_lost_device_is_raised_at_once() -> None:
    bench = Bench(4)
    bench.poison(StickyDeviceError("illegal address"), 2)
    with pytest.raises(StickyDeviceError):
        bench.step()
    assert len(bench.engine.steps) == 1
    assert not any(job.done for job in bench.jobs)


def test_out_of_memory_is_known_by_name_even_of_a_subclass() -> None:
    class Other(OutOfMemoryError):
        pass

    assert is_out_of_memory(Other())
    assert not is_out_of_memory(MemoryError())


def test_a_tried_call_returns_its_value_or_what_it_raised() -> None:
    assert try_call(int, "7") == (7, None)
    value, error = try_call(int, "seven")
    assert value is None
    assert isinstance(error, ValueError)


def test_at_most_five_frames_of_one_file_lie_between_the_thread_and_a_step(
    make_host: MakeHost,
) -> None:
    stacks: list[tuple[tuple[str, ...], list[str]]] = []

    class Walker(ScriptedEngine):
        """Writes down the files of all frames between the thread and `step`."""

        def step(self, jobs: Sequence[TaskJob]) -> None:
            frame, files = sys._getframe(1), []
            while frame is not None and frame.f_code.co_filename != threading.__file__:
                files.append(frame.f_code.co_filename)
                frame = frame.f_back  # type: ignore[assignment]
            assert frame is not None, "the thread's own frames were not reached"
            stacks.append((tuple(job.work.name for job in jobs), files))
            super().step(jobs)

    engine = Walker(slots=2, gated=False)
    engine.poison["bad"] = ValueError("poison")
    [bad, good] = submit(make_host(engine), Task("bad"), Task("good", steps=2))
    assert isinstance(failure(bad), StepFailed)
    assert answer(good) == good.work.chunks
    first_after_admission, *retries, later = stacks
    assert first_after_admission[0] == ("bad", "good")
    assert [names for names, _ in retries] == [("bad",), ("good",)]
    assert later[0] == ("good",)
    for _, files in stacks:
        assert set(files) == {loop.__file__}
        assert len(files) <= 5
