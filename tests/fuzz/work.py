"""Counts the work of a reader, so that tests can tell that it is linear in the input. Time would
tell what else the machine does.

Lines of this package that run and calls of C functions are counted by the interpreter. Bytes that
are copied or searched in a connection's buffer, and by its regular expressions, are counted by
stand-ins for both.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from predictors.errors import ServingError
from predictors.protocol.http import parsing


def steps(read: Callable[[], object]) -> int:
    """Lines run in `predictors` and in the library that splits forms, and calls of C functions. A
    refusal ends the count."""
    count = 0

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        return line if "predictors" in file or "python_multipart" in file else None

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "c_call"

    before = sys.gettrace()
    sys.settrace(call)
    sys.setprofile(profile)
    try:
        read()
    except ServingError:
        pass
    finally:
        sys.setprofile(None)
        sys.settrace(before)
    return count


class CountedBuffer(bytearray):
    """A connection's buffer that adds up the bytes that are copied out of it and searched."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.touched += len(found) if isinstance(key, slice) else 1
        return found

    def __delitem__(self, key: Any) -> None:
        before = len(self)
        super().__delitem__(key)
        # from the start: the bytes behind them are not moved, since a bytearray keeps its offset
        self.touched += before - len(self)

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        end = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, end)
        self.touched += max(0, (end if found < 0 else found + len(sub)) - start)
        return found

    def startswith(self, prefix: Any, *place: Any) -> bool:
        self.touched += len(prefix)
        return super().startswith(prefix, *place)


class CountedPattern:
    """A compiled pattern that adds up the bytes that it looks at: possessive ones look once."""

    def __init__(self, pattern: re.Pattern[bytes], buffer: CountedBuffer) -> None:
        self.pattern = pattern.pattern
        self._pattern, self._buffer = pattern, buffer

    def match(self, raw: Any, at: int = 0) -> Any:
        return self._count(self._pattern.match(raw, at), raw, at)

    def fullmatch(self, raw: Any, at: int = 0) -> Any:
        return self._count(self._pattern.fullmatch(raw, at), raw, at)

    def search(self, raw: Any, at: int = 0) -> Any:
        return self._count(self._pattern.search(raw, at), raw, at)

    def _count(self, found: Any, raw: Any, at: int) -> Any:
        self._buffer.touched += (len(raw) if found is None else found.end()) - at
        return found


@contextmanager
def counted_buffer() -> Iterator[CountedBuffer]:
    """A buffer for `HeadParser` and bodies, with their patterns counting into it."""
    buffer = CountedBuffer()
    names = [name for name, value in vars(parsing).items() if isinstance(value, re.Pattern)]
    before = {name: getattr(parsing, name) for name in names}
    try:
        for name, pattern in before.items():
            setattr(parsing, name, CountedPattern(pattern, buffer))
        yield buffer
    finally:
        for name, pattern in before.items():
            setattr(parsing, name, pattern)
