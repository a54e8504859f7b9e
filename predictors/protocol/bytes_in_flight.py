"""Counts the bytes of all requests together, and limits them: arriving bodies and messages and the
values decoded from them, until each request is answered.
"""

from __future__ import annotations

from collections.abc import Callable

from predictors.errors import Overloaded, TooLarge

UNCOUNTED_BYTES = 64 * 1024
"""Bytes of each request that are not counted, so that small requests pass while large ones use up
the limit."""
RETRY_AFTER_S = 2.0


class BytesInFlight:
    """Bytes that all large requests hold together, with a limit. Event loop only."""

    def __init__(self, limit: int, on_change: Callable[[int], object]) -> None:
        self._limit = limit
        self._on_change = on_change  # sets the gauge; workers import this module without metrics
        self.used = 0
        self.most_of_one = limit + UNCOUNTED_BYTES
        """Bytes that one request may have while there is no other."""

    def pressure(self) -> float:
        """The bytes as a share of their limit."""
        return self.used / max(1, self._limit)

    def check_one(self, num_bytes: int) -> None:
        """Raise `TooLarge` for one request that has more bytes than all together may have."""
        if num_bytes > self.most_of_one:
            raise TooLarge(
                f"the request takes {num_bytes} bytes; at most {self.most_of_one} are taken for "
                "one (setting server.max_bytes_in_flight)"
            )

    def add(self, num_bytes: int) -> None:
        """Add `num_bytes`. Raises `Overloaded` above the limit."""
        if self.used + num_bytes > self._limit:
            raise Overloaded(
                f"requests hold {self.used} bytes already, and at most {self._limit} are taken "
                "from all callers together; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.used += num_bytes
        self._on_change(self.used)

    def remove(self, num_bytes: int) -> None:
        self.used -= num_bytes
        self._on_change(self.used)


class Charge:
    """One request's share of `BytesInFlight`, without its first `UNCOUNTED_BYTES`."""

    def __init__(self, total: BytesInFlight) -> None:
        self._total = total
        self._seen = 0
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Charge bytes that have arrived. Raises `TooLarge` if all of them never fit, `Overloaded`
        if others hold too many now."""
        self._total.check_one(self._seen + num_bytes)
        self._seen += num_bytes
        due = max(0, self._seen - UNCOUNTED_BYTES) - self.num_bytes
        if due > 0:
            self._total.add(due)
            self.num_bytes += due

    def remove(self, num_bytes: int) -> None:
        """Give back bytes that were charged and are held no more."""
        self._seen -= num_bytes
        spare = self.num_bytes - max(0, self._seen - UNCOUNTED_BYTES)
        self._total.remove(spare)
        self.num_bytes -= spare

    def close(self) -> None:
        if self.num_bytes:
            self._total.remove(self.num_bytes)
            self.num_bytes = 0
