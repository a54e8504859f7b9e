"""The slots of an engine: which jobs hold one, and how many a caller may still have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from predictors.serving.accounts import Account, Accounts
from predictors.serving.job import Job
from predictors.serving.queue import FreeSlots

W = TypeVar("W")
C = TypeVar("C")


class Slots(Generic[W, C]):
    """Slots for any caller, and spare ones for those that hold less than their share while others
    hold all. Not thread-safe: `JobTable` holds the lock."""

    def __init__(
        self,
        num: int,
        num_spare: int,
        accounts: Accounts,
        estimate_s: Callable[[Job[W, C]], float],
    ) -> None:
        self.num = num
        self.num_spare = num_spare
        self.running: dict[int, Job[W, C]] = {}  # by arrival number
        self._accounts = accounts
        self._estimate_s = estimate_s

    @property
    def free(self) -> int:
        return max(0, self.num - len(self.running))

    @property
    def spare_left(self) -> int:
        return min(self.num_spare, self.num + self.num_spare - len(self.running))

    @property
    def has_room(self) -> bool:
        """True if some caller may have a slot."""
        if len(self.running) < self.num:
            return True
        return self.spare_left > 0 and self._accounts.present > 1

    def offered(self) -> FreeSlots:
        """The free slots, as an admission pass takes them."""
        left = self.num - len(self.running)
        return FreeSlots(max(0, left), min(self.num_spare, left + self.num_spare), self._share_of)

    def free_for(self, account: Account | None, weight: float) -> int:
        """Slots that the next jobs of a caller may take. `account` is None before it has one."""
        due = math.ceil(self._accounts.share(weight, self.num, account))
        due -= 0 if account is None else account.running
        return max(self.free, min(self.free + self.spare_left, due))

    def pledged_s(self) -> dict[Account, float]:
        """Engine seconds that running jobs will still use, by caller."""
        pledged: dict[Account, float] = {}
        for job in self.running.values():
            pledged[job.account] = pledged.get(job.account, 0.0) + self._left_s(job)
        return pledged

    def first_free_s(self) -> float:
        """Seconds until the first of the running jobs is done."""
        left_s = min((self._left_s(job) for job in self.running.values()), default=0.0)
        return left_s * len(self.running)

    def _left_s(self, job: Job[W, C]) -> float:
        """Engine seconds that a running job will still use."""
        return max(0.0, self._estimate_s(job) - job.used_s)

    def _share_of(self, account: Account) -> float:
        return self._accounts.share(account.weight, self.num, account)
