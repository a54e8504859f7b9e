"""The order of callers inside an engine: whose jobs step next, and who may have a spare slot.

Of the callers that hold slots, the one that has used the fewest weighted seconds goes first. A
newcomer starts level with that caller and goes before it, unless it left with a debt before; an
unused share is not saved up. The queue has its own order (`accounts`), which also counts the
seconds that running jobs are expected to use.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from predictors.serving.accounts import KEPT_DEBTS, Account
from predictors.serving.job import Job

T = TypeVar("T")

CREDIT_STEPS = 4
"""How far a caller may be behind the one that has used most, in steps as long as the longest. Two
callers that both wait for their turn are at most two steps apart."""
LONGEST_KEEPS = 0.98
"""Factor of the longest step's seconds at each step: a long step is forgotten after some fifty."""


def num_spare(slots: int) -> int:
    """Number of spare slots of an engine with `slots`: for callers that hold less than their share
    while others hold all."""
    return max(1, slots // 2)


@dataclass(slots=True, eq=False)
class Holder:
    """A caller with slots."""

    account: Account
    used_s: float
    """Weighted engine seconds. A newcomer starts at the least of the others' values."""
    slots: int = 0


class SlotHolders:
    """The callers whose jobs hold slots of one engine, in order of their coming. Engine thread
    only."""

    def __init__(self) -> None:
        self._holders: dict[str, Holder] = {}
        self._debts: OrderedDict[str, float] = OrderedDict()  # `used_s` of callers who left
        self._longest_s = 0.0

    def add(self, job: Job[Any, Any]) -> None:
        """`job` has got a slot."""
        holder = self._holders.get(job.account.name)
        if holder is None:
            level_s = min((each.used_s for each in self._holders.values()), default=0.0)
            used_s = max(level_s, self._debts.pop(job.account.name, 0.0))
            holder = self._holders[job.account.name] = Holder(job.account, used_s)
        holder.account = job.account
        holder.slots += 1

    def remove(self, job: Job[Any, Any]) -> None:
        """`job` has given its slot back."""
        holder = self._holders[job.account.name]
        holder.slots -= 1
        if holder.slots:
            return
        del self._holders[job.account.name]
        if not self._holders:  # all start equal the next time
            self._debts.clear()
            return
        self._debts[job.account.name] = holder.used_s
        if len(self._debts) > KEPT_DEBTS:
            self._debts.popitem(last=False)

    def clear(self) -> None:
        self._holders.clear()
        self._debts.clear()

    # -- shares ----------------------------------------------------------------------------------
    @property
    def is_shared(self) -> bool:
        """True if more than one caller holds slots."""
        return len(self._holders) > 1

    def held(self, account: Account) -> int:
        """Number of slots that a caller holds."""
        holder = self._holders.get(account.name)
        return 0 if holder is None else holder.slots

    def share(self, account: Account) -> float:
        """A caller's part of the engine, 0 to 1, by weight beside the others that hold slots."""
        others = sum(h.account.weight for n, h in self._holders.items() if n != account.name)
        return account.weight / (account.weight + others)

    def is_below_share(self, account: Account, slots: float) -> bool:
        """True if that caller holds less than its part of `slots`."""
        return self.held(account) < slots * self.share(account)

    def has_slot_for(self, account: Account, slots: int, spare: int) -> bool:
        """True if one of `slots` is free, or a spare one and the caller is below its share."""
        taken = sum(holder.slots for holder in self._holders.values())
        if taken < slots:
            return True
        return taken < slots + spare and self.is_below_share(account, slots)

    # -- turns -----------------------------------------------------------------------------------
    def ranks(self) -> dict[str, int]:
        """By caller's name: 0 for the one whose turn it is, then 1, 2, ..."""
        latest_first = reversed(self._holders.items())
        order = sorted(latest_first, key=lambda item: item[1].used_s)
        return {name: rank for rank, (name, _) in enumerate(order)}

    def in_turn(self, items: Sequence[T], account_of: Callable[[T], Account]) -> Sequence[T]:
        """`items` sorted by their callers' ranks, and within one caller in the order given."""
        if not self.is_shared:
            return items
        ranks = self.ranks()
        return sorted(items, key=lambda item: ranks[account_of(item).name])

    def deal(self, wanted: dict[str, int], places: int, place_s: float) -> dict[str, int]:
        """Divide `places` (rows of a step) among callers, each at most the number that it wants;
        returns numbers by caller's name. Each place goes to the caller that has used least by
        then, and costs it `place_s` seconds."""
        heap = []
        for rank, (name, holder) in enumerate(reversed(self._holders.items())):
            if most := wanted.get(name):
                heap.append((holder.used_s, rank, name, place_s / holder.account.weight, most))
        heapq.heapify(heap)
        got = dict.fromkeys(wanted, 0)
        for _ in range(places):
            if not heap:
                break
            used_s, rank, name, cost_s, left = heap[0]
            got[name] += 1
            if left == 1:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (used_s + cost_s, rank, name, cost_s, left - 1))
        return got

    # -- seconds ---------------------------------------------------------------------------------
    def charge(self, job: Job[Any, Any], seconds: float) -> None:
        """Count engine seconds that a step spent on `job`, which may have left meanwhile."""
        self.charge_each((job,), seconds)

    def charge_each(self, jobs: Iterable[Job[Any, Any]], seconds: float) -> None:
        """Count `seconds` on each of several jobs."""
        counts: dict[Account, int] = {}
        for job in jobs:
            job.used_s += seconds
            account = job.account
            counts[account] = counts.get(account, 0) + 1
        for account, count in counts.items():
            account.charge(seconds * count)
            holder = self._holders.get(account.name)
            if holder is not None:
                holder.used_s += seconds * count / holder.account.weight

    def end_step(self, seconds: float) -> None:
        """To be called after a step of so many seconds was charged. Limits how far callers can be
        behind (`CREDIT_STEPS`)."""
        self._longest_s = max(seconds, LONGEST_KEEPS * self._longest_s)
        if not self.is_shared:
            return
        most = max(holder.used_s for holder in self._holders.values())
        for holder in self._holders.values():
            least = most - CREDIT_STEPS * self._longest_s / holder.account.weight
            holder.used_s = max(holder.used_s, least)
