"""The share of an engine that each caller has used, and the order of callers in the queue.

Callers share an engine by start-time fair queueing for a server of several slots, SFQ(D) (Goyal,
Vin, Cheng, 1996; Jin, Chase, Kaur, 2004), over engine seconds divided by the caller's weight. A job
starts at its caller's tag; the least tag is admitted first. Absence earns nothing: a caller that
comes, or comes back, starts at the level of those that are served.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

KEPT_DEBTS = 1024  # callers that had used more than the level when they left: most that are kept

MAX_PRIORITY = 8


class Caller(NamedTuple):
    """A caller as the queue of an engine sees it."""

    name: str = ""
    weight: float = 1.0
    """Its share of the engine beside others, above 0."""
    priority: int = 0
    """Order among the caller's own jobs: a higher one goes first, within -8 and 8. It gives no
    right over others."""

    @property
    def level(self) -> int:
        """The priority, within its bounds."""
        return max(-MAX_PRIORITY, min(self.priority, MAX_PRIORITY))


ANYONE = Caller()


class Account:
    """One caller at one engine. `used_s` is written by the engine thread, or while no job of the
    caller runs; the counts under the lock of `JobTable`. Any thread may read."""

    __slots__ = ("floor_s", "name", "places", "running", "used_s", "waiting", "weight")

    def __init__(self, name: str, weight: float = 1.0, used_s: float = 0.0) -> None:
        self.name = name
        self.weight = weight
        """A caller of weight 2 gets twice the engine seconds of one of weight 1."""
        self.used_s = used_s
        """Weighted engine seconds: those charged, divided by the weight."""
        self.floor_s = used_s
        """The least start tag of its next job: the level when its first job began to wait."""
        self.waiting = 0
        self.running = 0
        self.places = 0
        """Places of the queue that it holds: waiting jobs and rows in preparation."""

    def charge(self, seconds: float) -> None:
        """Count engine seconds that a step spent on this caller's jobs. Engine thread."""
        self.used_s += seconds / self.weight

    def tag_s(self, pledged_s: float = 0.0) -> float:
        """The start tag of its next job, in weighted seconds: what it has used and what its running
        jobs will still use, `pledged_s` in engine seconds."""
        return max(self.used_s + pledged_s / self.weight, self.floor_s)


class Accounts:
    """The accounts of callers with jobs or places. Not thread-safe: `JobTable` holds the
    lock."""

    def __init__(self) -> None:
        self._open: dict[str, Account] = {}
        self._present: dict[Account, None] = {}  # with waiting or running jobs, as an ordered set
        self._running: dict[Account, None] = {}
        self._weights = 0.0  # of those present
        self._served_s = 0.0  # the most that the caller of an admitted job had used
        self._debts: OrderedDict[str, float] = OrderedDict()  # `used_s` of callers that left

    def of(self, caller: Caller) -> Account:
        """The caller's account, opened if it has none. `close_unused` must follow once the caller
        has neither jobs nor places."""
        account = self._open.get(caller.name)
        if account is None:
            used_s = max(self.level_s, self._debts.pop(caller.name, 0.0))
            account = self._open[caller.name] = Account(caller.name, caller.weight, used_s)
        elif account.weight != caller.weight:
            self._weights += (caller.weight - account.weight) * (account in self._present)
            account.weight = caller.weight
        return account

    def find(self, caller: Caller) -> Account | None:
        """The caller's account if it has one."""
        return self._open.get(caller.name)

    def add_waiting(self, account: Account, jobs: int) -> None:
        """Count jobs that begin to wait."""
        if account not in self._present:
            self._present[account] = None
            self._weights += account.weight
        if account.waiting == 0:
            # alone there is no level to start from, and none is needed
            account.floor_s = self.level_s if len(self._present) > 1 else 0.0
        account.waiting += jobs

    def start(self, account: Account, pledged_s: float) -> None:
        """Count a waiting job that starts to run. `pledged_s`: engine seconds that the caller's
        running jobs will still use. Engine thread."""
        tag_s = account.tag_s(pledged_s)
        account.used_s = max(account.used_s, tag_s - pledged_s / account.weight)
        # without what is pledged: a newcomer's steps are compared by what was used
        self._served_s = max(self._served_s, account.used_s)
        account.waiting -= 1
        account.running += 1
        self._running[account] = None

    def leave(self, account: Account, *, was_running: bool) -> None:
        """Count a job that has left its slot (`was_running`) or the queue."""
        if was_running:
            account.running -= 1
            if account.running == 0:
                del self._running[account]
        else:
            account.waiting -= 1
        if account.waiting + account.running == 0:
            del self._present[account]
            self._weights = self._weights - account.weight if self._present else 0.0
            self.close_unused(account)

    def close_unused(self, account: Account) -> None:
        """Close the account if it has neither jobs nor places. What it used beyond the level is
        remembered."""
        if account.waiting or account.running or account.places:
            return
        if self._open.pop(account.name, None) is None:
            return
        if not self._open:  # all start equal the next time
            self._served_s = max(self._served_s, account.used_s)
            self._debts.clear()
        elif account.used_s > self._served_s:
            self._debts[account.name] = account.used_s
            if len(self._debts) > KEPT_DEBTS:
                self._debts.popitem(last=False)

    # -- callers with jobs -----------------------------------------------------------------------
    @property
    def level_s(self) -> float:
        """Weighted seconds at which a newcomer starts: the most that any caller had used when a job
        of it was admitted, or the least of the callers in slots if that is more."""
        if not self._running:
            return self._served_s
        return max(self._served_s, min(account.used_s for account in self._running))

    @property
    def present(self) -> int:
        """Callers with jobs that wait or run."""
        return len(self._present)

    def none_pledged(self) -> dict[Account, float]:
        """As `Slots.pledged_s` for running jobs that will use nothing more: 0 for each caller."""
        return dict.fromkeys(self._running, 0.0)

    def all_present(self) -> list[Account]:
        return list(self._present)

    def share(self, weight: float, total: float, account: Account | None = None) -> float:
        """The part of `total` that a caller of this weight gets beside those present."""
        others = self._weights
        if account is not None and account in self._present:
            others -= account.weight
        return total * weight / (max(0.0, others) + weight)
