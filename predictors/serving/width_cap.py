"""The most jobs per step, learned from steps that ran out of memory.

A step that did not fit is halved, and later rounds take no more jobs than did fit. After some good
rounds at the cap one more job is tried; each time that fails, twice as many good rounds are needed
before the next try. Until a step runs out of memory there is no cap, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

GOOD_ROUNDS = 32  # at the cap, before one more job is tried
MAX_GOOD_ROUNDS = 4096


class WidthCap:
    """The cap of one engine's steps, in jobs. Engine thread.

    `most` is the engine's largest step; `on_change` is called with each new cap, 0 for none.
    """

    def __init__(self, most: int, on_change: Callable[[int], object]) -> None:
        self.width: int | None = None
        """None: no cap."""
        self._most = most
        self._on_change = on_change
        self._fits = 0  # the widest that did fit since the last failure
        self._has_failed = False  # in this round
        self._good_rounds = 0
        self._needed_rounds = GOOD_ROUNDS

    def groups(self, jobs: Sequence[T]) -> list[Sequence[T]]:
        """The groups of one round: at most `width` jobs each, in order."""
        width = self.width
        if width is None or len(jobs) <= width:
            return [jobs]
        return [jobs[i : i + width] for i in range(0, len(jobs), width)]

    def note_failure(self, width: int) -> None:
        """A step of so many jobs ran out of memory."""
        self._has_failed = True
        if self.width is not None and width > self.width:
            return  # another group of the round that has lowered the cap already
        if 0 < self._fits < width:  # one more than did fit was tried
            self._needed_rounds = min(2 * self._needed_rounds, MAX_GOOD_ROUNDS)
            self._set(self._fits)
        else:
            self._fits = 0
            self._set(max(1, min(width // 2, self.width or width)))
            self._needed_rounds = GOOD_ROUNDS

    def note_success(self, width: int) -> None:
        """A step of so many jobs did fit."""
        if self.width is None:
            return
        if width > self._fits:
            self._fits = width
            self._needed_rounds = GOOD_ROUNDS
        if width >= self._most:
            self._set(None)
        elif width > self.width:
            self._set(width)

    def end_round(self, width: int) -> None:
        """A round of so many jobs is over, and no job failed alone."""
        if self._has_failed:
            self._has_failed = False
            self._good_rounds = 0
            return
        if self.width is None or width <= self.width:
            return
        self._good_rounds += 1
        if self._good_rounds >= self._needed_rounds:
            self._good_rounds = 0
            self._set(min(self.width + 1, self._most))

    def reset(self, width: int | None) -> None:
        """Return to the cap from before a failure that says nothing about other jobs."""
        self._has_failed = False
        self._good_rounds = 0
        self._set(width)

    def _set(self, width: int | None) -> None:
        if width != self.width:
            self.width = width
            self._on_change(width or 0)
