"""How much of an engine each caller has used, in engine seconds divided by the caller's weight.

Callers share an engine by start-time fair queueing (Goyal, Vin, Cheng, 1996): the caller that has
used least goes first, and one that comes, or comes back, starts level with the least of those that
are present, so that absence earns nothing. Memory is bounded by the jobs present.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller as the queue of an engine sees it."""

    name: str = ""
    weight: float = 1.0
    """Its share of the engine beside others, above 0."""
    priority: int = 0
    """Order among the caller's own jobs: a higher one goes first. It gives no right over others."""


ANYONE = Caller()


class Account:
    """One caller at one engine. Written by the engine thread alone, read by any."""

    __slots__ = ("name", "open_jobs", "used_s", "weight")

    def __init__(self, name: str, weight: float = 1.0, used_s: float = 0.0) -> None:
        self.name = name
        self.weight = weight
        """A caller of weight 2 gets twice the engine seconds of one of weight 1."""
        self.used_s = used_s
        """Weighted engine seconds: those charged, divided by the weight."""
        self.open_jobs = 0
        """Jobs that wait or hold a slot. Kept by `Accounts`."""

    def charge(self, seconds: float) -> None:
        """Count engine seconds that a step spent on this caller's jobs. Engine thread."""
        self.used_s += seconds / self.weight


class Accounts:
    """The accounts of callers with open jobs. Not thread-safe: `JobTable` holds the lock."""

    def __init__(self) -> None:
        self._open: dict[str, Account] = {}
        self._level_s = 0.0  # `used_s` of the least of those present, kept while none is

    def open(self, name: str, weight: float, jobs: int) -> Account:
        """The account of a caller with so many more open jobs; `close` must follow for each."""
        account = self._open.get(name)
        if account is None:
            account = self._open[name] = Account(name, weight, self.level_s)
        account.weight = weight
        account.open_jobs += jobs
        return account

    def close(self, account: Account) -> None:
        """One of its jobs has left."""
        account.open_jobs -= 1
        if account.open_jobs == 0:
            self._level_s = max(self._level_s, self.level_s)
            self._open.pop(account.name, None)

    @property
    def level_s(self) -> float:
        """Weighted seconds at which a newcomer starts."""
        least = min((each.used_s for each in self._open.values()), default=self._level_s)
        return max(self._level_s, least)

    @property
    def present(self) -> int:
        """Callers with open jobs."""
        return len(self._open)
