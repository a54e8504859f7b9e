"""Requests whose bodies are still arriving, and how many of them one caller may have.

A body that arrives slowly holds a connection. One caller may hold half of them so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from predictors.errors import QuotaExceeded, ServingError


class PendingBody(Protocol):
    """A request whose body is still arriving."""

    def stop_reading(self, reason: ServingError) -> None: ...


class PendingBodies:
    """The requests whose bodies are still arriving, by caller. Event loop only."""

    def __init__(self) -> None:
        self.most_of_one: float = math.inf
        """Most bodies of one caller that may be arriving; set by the server."""
        self._callers: dict[PendingBody, str] = {}
        self._counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[PendingBody]:
        return iter(list(self._callers))

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, body: PendingBody, caller: str) -> None:
        """Raises `QuotaExceeded` if the caller has as many as it may."""
        count = self._counts[caller]
        if count >= self.most_of_one:
            raise QuotaExceeded(
                f"{count} requests of this caller are open without their whole body, that is the "
                "limit; send a body at once, or try again later"
            )
        self._counts[caller] = count + 1
        self._callers[body] = caller

    def remove(self, body: PendingBody) -> None:
        caller = self._callers.pop(body)
        self._counts[caller] -= 1
        if not self._counts[caller]:
            del self._counts[caller]
