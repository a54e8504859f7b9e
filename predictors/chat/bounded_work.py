"""Limits the work of code that a folder brings, such as a chat template, by the lines of Python
that it runs and by the memory that the process gains: a slow machine refuses no more than a fast
one.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MOST_EVENTS = 1_000_000  # calls, lines and returns; a release's template compiles with 80,000
MOST_MEMORY_KIB = 512 * 1024  # ru_maxrss is in KiB
MOST_CHARACTERS = 2**17  # that a template writes around a few words
_LOOKS = 8  # events from one look at the memory to the next


class TooMuchWork(Exception):
    """The code inside `limited_work` ran past a limit."""


class _Stop(BaseException):
    """Not an `Exception`: Jinja's optimiser goes on after one."""


@contextmanager
def limited_work() -> Iterator[None]:
    """Raise `TooMuchWork` once this thread has run `MOST_EVENTS` or the process has gained
    `MOST_MEMORY_KIB`. One operation is never cut short, nor is a loop inside of C code."""
    left, memory = MOST_EVENTS, _peak_kib() + MOST_MEMORY_KIB

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or (left % _LOOKS == 0 and _peak_kib() > memory):
            raise _Stop
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    except _Stop as stop:
        raise TooMuchWork from stop
    finally:
        sys.settrace(before)


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
