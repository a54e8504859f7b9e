"""Samples log lines that come in floods, and counts those that are left out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

LINES = 10
"""Lines of one kind that are written in each window."""
WINDOW_S = 1.0


@dataclass(slots=True)
class _Kind:
    began: float
    written: int = 0
    left_out: int = 0
    has_timer: bool = False


class SampledLines:
    """Decides which lines of each kind are written. The kinds must be few. Event loop only.

    The number of lines left out goes with the next line of the kind, or at the end of the window
    into a line of its own.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def admit(self, kind: str) -> int | None:
        """Lines of this kind that were left out before this one; None to leave this one out."""
        now = self._clock()
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _Kind(now)
        if now - state.began >= WINDOW_S:
            state.began, state.written = now, 0
        if state.written >= LINES:
            state.left_out += 1
            self._start_timer(kind, state)
            return None
        state.written += 1
        left_out, state.left_out = state.left_out, 0
        return left_out

    def _start_timer(self, kind: str, state: _Kind) -> None:
        if state.has_timer:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the next line has the number
            return
        state.has_timer = True
        loop.call_later(WINDOW_S, self._report, kind, state)

    def _report(self, kind: str, state: _Kind) -> None:
        state.has_timer = False
        left_out, state.left_out = state.left_out, 0
        if left_out:
            fields = {"reason": kind, "left_out": left_out}
            self._log.info("%d refusals were left out here: %s", left_out, kind, extra=fields)
