"""Processor time is told by the names of threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from predictors.observe.thread_times import processor_seconds, seconds_by_thread

WORK_S = 0.05


def work() -> None:
    """Use processor time of this thread."""
    until = time.thread_time() + WORK_S
    while time.thread_time() < until:
        pass


def test_a_pool_is_one_entry_and_has_the_time_of_its_threads() -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="busy-under-test") as pool:
        both = threading.Barrier(2)

        def meet_and_work() -> None:
            both.wait()
            work()

        for each in [pool.submit(meet_and_work) for _ in range(2)]:
            each.result()
        found = seconds_by_thread()
    assert found["busy-under-test"] >= 2 * WORK_S - 0.03, "ticks of 10 ms"
    assert threading.main_thread().name in found
    assert not [name for name in found if name.startswith("busy-under-test_")]


def test_a_thread_that_has_ended_has_no_time() -> None:
    assert processor_seconds(Path("/proc/self/task/0")) == 0.0
