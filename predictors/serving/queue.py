"""Who waits, in which order, and how many may. Knows not why an engine refuses, and nothing of time
but the head's age.

First in, first out, with one exception: behind a head that the engine can't take now, the next few
are offered (the skip window) until the head is older than a limit. Leaving from the middle costs
the same as from the front, and nothing here ever walks over all that wait. Not thread-safe:
`Roster` holds the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from predictors.serving.job import Job
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")


class AdmissionQueue(Generic[W, C]):
    """Waiting jobs in order of their tickets. `settings.capacity` bounds them."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        # a linked list under a dict: a plain dict keeps tombstones, and its first item gets ever
        # dearer to find when the front is what leaves
        self._jobs: OrderedDict[int, Job[W, C]] = OrderedDict()
        self._is_blocked = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def head(self) -> Job[W, C] | None:
        """The job that waits longest."""
        return next(iter(self._jobs.values()), None)

    def room(self, free_slots: int) -> int:
        """How many more jobs may come now: places that are free, and slots that will take someone.

        A free slot does not count while the engine turns waiting jobs away: it won't take the next
        either.
        """
        return self._settings.capacity - len(self._jobs) + (0 if self._is_blocked else free_slots)

    def put(self, jobs: Iterable[Job[W, C]]) -> None:
        """Add at the end; the caller has looked at `room`."""
        for job in jobs:
            self._jobs[job.ticket] = job

    def has(self, ticket: int) -> bool:
        """Whether the job with this ticket waits."""
        return ticket in self._jobs

    def pop(self, ticket: int) -> Job[W, C] | None:
        """Take a job out, wherever it stands; None when it does not wait."""
        job = self._jobs.pop(ticket, None)
        self._is_blocked = self._is_blocked and bool(self._jobs)
        return job

    def clear(self) -> list[Job[W, C]]:
        """Take everybody out, in order."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._is_blocked = False
        return jobs

    def walk(self, free_slots: int, now: float) -> Walk[W, C]:
        """One admission pass; what it offers is bounded by slots and window, not by who waits."""
        count = free_slots + 1 + self._settings.skip_window if free_slots > 0 else 0
        return Walk(list(islice(self._jobs.values(), count)), self._settings, now)

    def end_walk(self, walk: Walk[W, C]) -> None:
        """Remember whether the engine turned somebody away who still waits."""
        self._is_blocked = any(job.ticket in self._jobs for job in walk.refused)


class Walk(Generic[W, C]):
    """One pass over the front: yields whom to offer next; `refuse` says who did not fit."""

    def __init__(self, shortlist: list[Job[W, C]], settings: QueueSettings, now: float) -> None:
        self._shortlist = shortlist
        self._skip_window = settings.skip_window
        self._overdue_before = now - settings.skip_max_wait_s
        self.refused: list[Job[W, C]] = []

    def __iter__(self) -> Iterator[Job[W, C]]:
        skips = 0
        for job in self._shortlist:
            if self.refused:
                if skips == self._skip_window or self._is_overdue(self.refused[0]):
                    return
                skips += 1
            yield job

    def refuse(self, job: Job[W, C]) -> None:
        """The engine can't take `job` now; those behind it may be tried."""
        self.refused.append(job)

    def _is_overdue(self, job: Job[W, C]) -> bool:
        return job.submitted_at < self._overdue_before
