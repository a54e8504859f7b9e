"""Limits the work of code that a folder brings, such as a chat template, by the lines of Python
that it runs and by the memory that the process gains: a slow machine refuses no more than a fast
one.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MOST_EVENTS = 1_000_000  # calls, lines and returns; a release's template compiles with 80,000
MOST_MEMORY_KIB = 512 * 1024
MOST_CHARACTERS = 2**17  # that a template writes around a few words


class TooMuchWork(Exception):
    """The code inside `limited_work` ran past a limit."""


class _Stop(BaseException):
    """Not an `Exception`: Jinja's optimiser goes on after one."""


@contextmanager
def limited_work() -> Iterator[None]:
    """Raise `TooMuchWork` once this thread has run `MOST_EVENTS` or the process has gained
    `MOST_MEMORY_KIB`. One operation is never cut short, nor is a loop inside of C code."""
    with _memory_kib() as used_kib:
        left, most_kib = MOST_EVENTS, used_kib() + MOST_MEMORY_KIB

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0 or used_kib() > most_kib:  # each event may double what there is
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


@contextmanager
def _memory_kib() -> Iterator[Callable[[], int]]:
    """Reads the memory that the process holds now, in KiB. Without Linux's /proc it is the most
    that it ever held, under which a gain can hide."""
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return
    page_kib = resource.getpagesize() // 1024
    try:
        yield lambda: int(os.pread(statm, 128, 0).split()[1]) * page_kib
    finally:
        os.close(statm)
