"""Order, bound, skip window and head age of the admission queue, without threads or engines."""

from __future__ import annotations

from collections.abc import Iterable

from predictors.serving.job import Job
from predictors.serving.queue import AdmissionQueue
from predictors.settings import QueueSettings
from tests.fakes import ScriptedClock, Task


def waiting(
    count: int, clock: ScriptedClock | None = None, **settings: float
) -> AdmissionQueue[Task, str]:
    queue: AdmissionQueue[Task, str] = AdmissionQueue(QueueSettings(**settings))  # type: ignore[arg-type]
    for ticket in range(1, count + 1):
        job = Job(str(ticket), Task(str(ticket)), clock=clock or ScriptedClock())
        job.ticket = ticket
        queue.put([job])
    return queue


def offered(
    queue: AdmissionQueue[Task, str], refuse: Iterable[int], *, free_slots: int, now: float = 1000.0
) -> list[int]:
    """The tickets that are offered by one pass when the engine turns away those in `refuse`."""
    seen = []
    walk = queue.walk(free_slots, now)
    for job in walk:
        seen.append(job.ticket)
        if job.ticket in refuse:
            walk.refuse(job)
        else:
            queue.pop(job.ticket)
    queue.end_walk(walk)
    return seen


def test_first_in_is_first_offered() -> None:
    assert offered(waiting(5), [], free_slots=3)[:3] == [1, 2, 3]


def test_a_job_leaves_from_the_middle_and_the_order_stays() -> None:
    queue = waiting(5)
    assert queue.pop(3) is not None
    assert queue.pop(3) is None
    assert not queue.has(3)
    assert offered(queue, [], free_slots=5) == [1, 2, 4, 5]


def test_behind_a_head_that_does_not_fit_the_next_few_are_tried() -> None:
    queue = waiting(20, skip_window=4)
    assert offered(queue, [1], free_slots=30) == [1, 2, 3, 4, 5]


def test_the_window_begins_at_the_first_that_does_not_fit() -> None:
    queue = waiting(20, skip_window=2)
    assert offered(queue, [4, 5], free_slots=30) == [1, 2, 3, 4, 5, 6]


def test_without_a_window_nobody_overtakes() -> None:
    assert offered(waiting(5, skip_window=0), [2], free_slots=5) == [1, 2]


def test_nobody_overtakes_a_head_that_has_waited_too_long() -> None:
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.0) == [1, 2, 3, 4, 5]
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.1) == [1]


def test_a_head_that_has_waited_too_long_is_admitted_like_any_other() -> None:
    assert offered(waiting(3, skip_max_wait_s=30), [], free_slots=5, now=9999.0) == [1, 2, 3]


def test_without_a_free_slot_nobody_is_offered() -> None:
    assert offered(waiting(3), [], free_slots=0) == []


def test_a_pass_looks_at_few_however_many_wait() -> None:
    assert len(offered(waiting(1000, skip_window=8), range(1000), free_slots=4)) == 9


def test_there_is_room_for_the_capacity_and_for_the_free_slots() -> None:
    queue = waiting(3, capacity=5)
    assert queue.room(free_slots=0) == 2
    assert queue.room(free_slots=4) == 6


def test_a_free_slot_that_takes_nobody_is_no_room() -> None:
    queue = waiting(3, capacity=5)
    offered(queue, [1, 2, 3], free_slots=4)
    assert queue.room(free_slots=4) == 2
    offered(queue, [1], free_slots=4)  # 2 and 3 got in, 1 is still turned away
    assert queue.room(free_slots=2) == 4
    queue.pop(1)  # it leaves: the others may fit
    assert queue.room(free_slots=2) == 7


def test_clearing_returns_everybody_in_order() -> None:
    queue = waiting(4)
    assert [job.ticket for job in queue.clear()] == [1, 2, 3, 4]
    assert len(queue) == 0
    assert queue.head is None
