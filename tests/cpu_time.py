"""Tells whether work in C, such as a regular expression's, grows with the input alone. Its steps
can't be counted, so CPU time of this thread stands for them: a busy machine does not add to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES = 8
"""The larger input by the smaller one."""
MOST_GROWTH = 24
"""Linear work grows by `TIMES`, a quadratic search by 64."""
LEAST_S = 0.001
"""Below this a clock says nothing."""


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread for `work`, the least of three runs."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return min(took)


def assert_linear(work_of: Callable[[int], Callable[[], object]], size: int) -> None:
    """Fails if the work that `work_of` makes for an input of `TIMES` `size` grows like a square."""
    small, large = cpu_seconds(work_of(size)), cpu_seconds(work_of(TIMES * size))
    assert large < MOST_GROWTH * max(small, LEAST_S), (small, large)
