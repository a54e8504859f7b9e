"""Whose turn it is in an engine: the order of callers in a step, and who may take more slots.

The caller who has used least goes first, as in the queue (`accounts`). One who uses less than its
share although nothing holds it back can't save that up: its account stays within a few steps of the
others'. Engine thread only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from predictors.serving.accounts import Account
from predictors.serving.job import Job

T = TypeVar("T")

CREDIT_STEPS = 4
"""Longest steps that a caller may be behind the one who has used most. Two who both wait for their
turn are at most two steps apart."""
LONGEST_KEEPS = 0.98
"""Of the longest step's seconds, per step: a longer one is forgotten after some fifty."""


class SlotHolders:
    """The callers whose jobs hold slots of one engine, in order of their oldest job."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._held: dict[str, int] = {}
        self._longest_s = 0.0

    def add(self, job: Job[Any, Any]) -> None:
        """`job` has got a slot."""
        name = job.account.name
        self._accounts[name] = job.account
        self._held[name] = self._held.get(name, 0) + 1

    def remove(self, job: Job[Any, Any]) -> None:
        """`job` has given its slot back."""
        name = job.account.name
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name], self._accounts[name]

    def clear(self) -> None:
        self._accounts.clear()
        self._held.clear()

    @property
    def is_shared(self) -> bool:
        """More than one caller holds slots."""
        return len(self._accounts) > 1

    def held(self, account: Account) -> int:
        """Slots of that caller."""
        return self._held.get(account.name, 0)

    def share(self, account: Account) -> float:
        """The part of the engine, 0 to 1, that a caller may claim beside the others here."""
        others = sum(a.weight for name, a in self._accounts.items() if name != account.name)
        return account.weight / (account.weight + others)

    def is_below_share(self, account: Account, slots: float) -> bool:
        """True if that caller holds less than its part of `slots`."""
        return self.held(account) < slots * self.share(account)

    def ranks(self) -> dict[str, int]:
        """By caller's name: 0 for the one whose turn it is, then 1, 2, ..."""
        order = sorted(self._accounts.values(), key=_used)
        return {account.name: rank for rank, account in enumerate(order)}

    def in_turn(self, items: Sequence[T], account_of: Callable[[T], Account]) -> Sequence[T]:
        """`items` by their callers' turns, those of one caller in the order given. The same
        sequence for one caller."""
        if not self.is_shared:
            return items
        ranks = self.ranks()
        return sorted(items, key=lambda item: ranks[account_of(item).name])

    def end_step(self, seconds: float) -> None:
        """A step of so many seconds was charged: limit what callers can be behind."""
        self._longest_s = max(seconds, LONGEST_KEEPS * self._longest_s)
        if not self.is_shared:
            return
        most = max(account.used_s for account in self._accounts.values())
        for account in self._accounts.values():
            least = most - CREDIT_STEPS * self._longest_s / account.weight
            account.used_s = max(account.used_s, least)


def deal(wanted: Sequence[tuple[Account, int]], places: int, place_s: float) -> list[int]:
    """How many of `places` each caller gets of those it wants: one at a time to the caller who
    would then have used least, where a place costs `place_s` seconds."""
    heap = [
        (account.used_s, rank, place_s / account.weight, most)
        for rank, (account, most) in enumerate(wanted)
        if most
    ]
    heapq.heapify(heap)
    got = [0] * len(wanted)
    for _ in range(places):
        if not heap:
            break
        used_s, rank, cost, left = heap[0]
        got[rank] += 1
        if left == 1:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (used_s + cost, rank, cost, left - 1))
    return got


def _used(account: Account) -> float:
    return account.used_s
