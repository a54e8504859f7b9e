"""The bounded queue of jobs that wait for a slot, and the order in which they are offered.

The caller with the least start tag (`accounts`) goes first. Of one caller's jobs the oldest goes
first if it is overdue, else the one of the highest priority. Behind jobs that the engine can't take
now the next few are offered too (the skip window), until the first job that was passed over is
overdue. Removing a job takes the same time anywhere in the queue.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from predictors.serving.accounts import Account
from predictors.serving.job import Job
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

STALE_ENTRIES = 64  # stale entries that the heap of callers may hold beside the live ones

_serials = count()


class CallerLine(Generic[W, C]):
    """Waiting jobs of one caller: by priority, then in order of arrival."""

    def __init__(self) -> None:
        self.costs: dict[str, float] = {}
        """Cost of its jobs, by kind of work."""
        # a linked list under a dict: a plain dict keeps tombstones, which make its first item
        # slower and slower to find when jobs leave from the front
        self._levels: dict[int, OrderedDict[int, Job[W, C]]] = {}

    @property
    def oldest(self) -> int:
        """The least arrival number."""
        return min(next(iter(level)) for level in self._levels.values())

    def add(self, job: Job[W, C]) -> None:
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = OrderedDict()
        level[job.arrival_number] = job
        self.costs[job.cost_kind] = self.costs.get(job.cost_kind, 0.0) + job.cost

    def remove(self, job: Job[W, C]) -> bool:
        """Returns True if no job is left."""
        level = self._levels[job.priority]
        del level[job.arrival_number]
        self.costs[job.cost_kind] -= job.cost
        if not level:
            del self._levels[job.priority]
        return not self._levels

    def next_except(self, offered: Container[int], overdue_before: float) -> Job[W, C] | None:
        """The caller's next job that is not in `offered` (arrival numbers): the oldest if it was
        submitted before `overdue_before`, else the first of the highest priority."""
        best: Job[W, C] | None = None
        oldest: Job[W, C] | None = None
        for level in self._levels.values():
            job = next((job for number, job in level.items() if number not in offered), None)
            if job is None:
                continue
            if best is None or job.priority > best.priority:
                best = job
            if oldest is None or job.arrival_number < oldest.arrival_number:
                oldest = job
        return oldest if oldest is not None and oldest.submitted_at < overdue_before else best


class Turn(NamedTuple):
    """The key by which an admission pass orders callers: the least goes first."""

    refusals: int
    """Jobs of the caller that the engine refused in this pass."""
    tag_s: float
    arrival_number: int
    """Arrival number of the caller's oldest job."""
    serial: int
    """Unique, so that accounts are never compared."""
    account: Account


class FreeSlots(NamedTuple):
    """The slots that an admission pass may fill."""

    free: int
    """Slots for any caller."""
    spare: int = 0
    """Further slots, for callers that hold less than their share."""
    share_of: Callable[[Account], float] = lambda account: 0.0
    """A caller's share of the engine, in slots."""

    def may_take(self, account: Account, taken: int) -> bool:
        """True if the caller may have a slot after `taken` slots were given in this pass."""
        if taken < self.free:
            return True
        return taken < self.free + self.spare and account.running < self.share_of(account)


class AdmissionQueue(Generic[W, C]):
    """Waiting jobs, keyed by arrival number. Not thread-safe: `JobTable` holds the lock.

    Unserved callers (jobs wait, none runs) are in a heap, since their tags do not change. Callers
    with running jobs, at most one per slot, are compared in each pass.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.is_blocked = False
        """True while the engine refuses waiting jobs: it would refuse the next job too."""
        self.costs: dict[str, float] = {}
        """Cost of all waiting jobs, by kind of work."""
        self.refused_first: Job[W, C] | None = None
        """The waiting job that the engine has refused for longest."""
        self.refused_since = 0.0
        """When it was refused for the first time."""
        self.lines: dict[Account, CallerLine[W, C]] = {}
        self.jobs: OrderedDict[int, Job[W, C]] = OrderedDict()
        """All waiting jobs by arrival number."""
        self._unserved: list[Turn] = []  # heap
        self._unserved_turns: dict[Account, Turn] = {}  # the live entries of the heap

    def __len__(self) -> int:
        return len(self.jobs)

    def __contains__(self, arrival_number: int) -> bool:
        return arrival_number in self.jobs

    @property
    def head(self) -> Job[W, C] | None:
        """The job that has waited longest."""
        return next(iter(self.jobs.values()), None)

    def add(self, jobs: Iterable[Job[W, C]]) -> None:
        for job in jobs:
            self.jobs[job.arrival_number] = job
            self.costs[job.cost_kind] = self.costs.get(job.cost_kind, 0.0) + job.cost
            line = self.lines.get(job.account)
            if line is None:
                line = self.lines[job.account] = CallerLine()
                line.add(job)
                if not job.account.running:
                    self._add_unserved(job.account, job.arrival_number)
            else:
                line.add(job)

    def pop(self, arrival_number: int) -> Job[W, C] | None:
        """Remove a job from anywhere in the queue; None when it does not wait."""
        job = self.jobs.pop(arrival_number, None)
        if job is None:
            return None
        if self.jobs:
            self.costs[job.cost_kind] -= job.cost
        else:  # nothing is left of rounding errors either
            self.costs.clear()
            self.is_blocked = False
        line = self.lines[job.account]
        if line.remove(job):
            del self.lines[job.account]
            self._unserved_turns.pop(job.account, None)
        if job is self.refused_first:
            self.refused_first = None
        return job

    def clear(self) -> list[Job[W, C]]:
        """Remove all jobs and return them in order of arrival."""
        jobs = list(self.jobs.values())
        self.jobs.clear()
        self.lines.clear()
        self._unserved.clear()
        self._unserved_turns.clear()
        self.refused_first = None
        self.costs.clear()
        self.is_blocked = False
        return jobs

    # -- unserved callers ------------------------------------------------------------------------
    def add_unserved(self, account: Account) -> None:
        """Put a caller into the heap if its jobs wait and none runs. To be called when its last
        running job has left."""
        line = self.lines.get(account)
        if line is not None and not account.running:
            self._add_unserved(account, line.oldest)

    def _add_unserved(self, account: Account, oldest: int) -> None:
        turn = Turn(0, account.tag_s(), oldest, next(_serials), account)
        self._unserved_turns[account] = turn
        heapq.heappush(self._unserved, turn)
        if len(self._unserved) > 2 * len(self._unserved_turns) + STALE_ENTRIES:
            self._unserved = list(self._unserved_turns.values())
            heapq.heapify(self._unserved)

    def pop_unserved(self, before: Turn | None) -> Turn | None:
        """Remove and return the first entry of the heap, if it comes before that turn."""
        while self._unserved and (before is None or self._unserved[0] < before):
            turn = heapq.heappop(self._unserved)
            if self._unserved_turns.get(turn.account) is turn:
                del self._unserved_turns[turn.account]
                return turn
        return None

    # -- passes ----------------------------------------------------------------------------------
    def start_pass(
        self,
        slots: FreeSlots,
        now: float,
        pledged_s: Mapping[Account, float] | None = None,
        estimate_s: Callable[[Job[W, C]], float] = lambda job: 1.0,
    ) -> AdmissionPass[W, C]:
        """Start one admission pass. `pledged_s` are the engine seconds that the running jobs of
        each caller with running jobs will still use, `estimate_s` those of a waiting job."""
        for account in pledged_s or ():
            self._unserved_turns.pop(account, None)
        return AdmissionPass(self, slots, now, dict(pledged_s or {}), estimate_s)

    def end_pass(self, admission: AdmissionPass[W, C]) -> None:
        """Remember whether the engine refused a job that still waits."""
        self.is_blocked = False
        if admission.refused:
            refused = [job for job in admission.refused if job.arrival_number in self.jobs]
            self.is_blocked = bool(refused)
            if refused and self.refused_first is None:
                self.refused_first, self.refused_since = refused[0], admission.now
        for account in admission.compared:
            if account in self.lines and account not in self._unserved_turns:
                self.add_unserved(account)


class AdmissionPass(Generic[W, C]):
    """One pass over the queue. Engine thread; `offers` reads the queue, so it is advanced under the
    lock."""

    def __init__(
        self,
        queue: AdmissionQueue[W, C],
        slots: FreeSlots,
        now: float,
        pledged_s: dict[Account, float],
        estimate_s: Callable[[Job[W, C]], float],
    ) -> None:
        self.now = now
        self.refused: list[Job[W, C]] = []
        self.compared: set[Account] = set()
        """Unserved callers that this pass took out of the heap."""
        self._queue = queue
        self._slots = slots
        self._pledged_s = pledged_s
        self._estimate_s = estimate_s
        self._overdue_before = now - queue.settings.skip_max_wait_s
        self._offered: set[int] = set()
        self._taken = 0
        self._skips = 0
        self._turns = [self._turn(account, 0) for account in pledged_s if account in queue.lines]
        if self._turns:
            heapq.heapify(self._turns)
        self.offers = self._offer_all()
        """The jobs to offer to the engine, each once."""

    def refuse(self, job: Job[W, C]) -> None:
        """Note that the engine can't take `job` now; jobs behind it may be offered."""
        self.refused.append(job)

    def _offer_all(self) -> Iterator[Job[W, C]]:
        if len(self._queue.jobs) == 1 and self._slots.free:
            yield next(iter(self._queue.jobs.values()))  # the small request of an idle server
            return
        passed = self._queue.refused_first
        is_due = passed is not None and self._slots.may_take(passed.account, 0)
        if passed is not None and is_due and self._was_passed_too_long():
            yield from self._offer(passed)
            if self.refused:
                return
        while (turn := self._next_turn()) is not None:
            account = turn.account
            line = self._queue.lines.get(account)
            if line is None or not self._slots.may_take(account, self._taken):
                continue
            job = line.next_except(self._offered, self._overdue_before)
            if job is None or self._is_behind_overdue(account):
                continue
            if self.refused:
                if self._skips == self._queue.settings.skip_window or self._was_passed_too_long():
                    return
                self._skips += 1
            yield from self._offer(job)
            # the next one of a caller that was refused comes after the first ones of others
            refusals = turn.refusals + (job in self.refused)
            if account in self._queue.lines:
                heapq.heappush(self._turns, self._turn(account, refusals))

    def _offer(self, job: Job[W, C]) -> Iterator[Job[W, C]]:
        self._offered.add(job.arrival_number)
        yield job
        if job.arrival_number not in self._queue:
            self._taken += 1
            if len(self._queue.lines) < 2 and not self._turns:
                return  # no other caller to compare with
            pledged_s = self._pledged_s.get(job.account, 0.0)
            self._pledged_s[job.account] = pledged_s + self._estimate_s(job)

    def _next_turn(self) -> Turn | None:
        if self._taken == self._slots.free + self._slots.spare:
            return None
        turn = self._queue.pop_unserved(self._turns[0] if self._turns else None)
        if turn is not None:
            self.compared.add(turn.account)
            return turn
        return heapq.heappop(self._turns) if self._turns else None

    def _turn(self, account: Account, refusals: int) -> Turn:
        tag_s = account.tag_s(self._pledged_s.get(account, 0.0))
        oldest = self._queue.lines[account].oldest
        return Turn(refusals, tag_s, oldest, next(_serials), account)

    def _is_behind_overdue(self, account: Account) -> bool:
        """True if an overdue job of the same caller was refused: no other may go before it."""
        return any(
            job.account is account and job.submitted_at < self._overdue_before
            for job in self.refused
        )

    def _was_passed_too_long(self) -> bool:
        """True if others have been admitted before the first refused job for too long."""
        queue = self._queue
        return queue.refused_first is not None and queue.refused_since < self._overdue_before
