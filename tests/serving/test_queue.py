"""Order, bound, skip window and head age of the admission queue, without threads or engines."""

from __future__ import annotations

from collections.abc import Iterable

from predictors.serving.accounts import Account
from predictors.serving.job import Job
from predictors.serving.queue import AdmissionQueue, FreeSlots
from predictors.settings import QueueSettings
from tests.fakes import ScriptedClock, Task


def waiting(
    count: int, clock: ScriptedClock | None = None, **settings: float
) -> AdmissionQueue[Task, str]:
    queue: AdmissionQueue[Task, str] = AdmissionQueue(QueueSettings(**settings))  # type: ignore[arg-type]
    account = Account("one")
    for number in range(1, count + 1):
        job = Job(str(number), Task(str(number)), clock=clock or ScriptedClock())
        job.arrival_number = number
        job.account = account
        queue.add([job])
    return queue


def offered(
    queue: AdmissionQueue[Task, str], refuse: Iterable[int], *, free_slots: int, now: float = 1000.0
) -> list[int]:
    """Arrival numbers of the jobs that one pass offers when the engine refuses `refuse`."""
    seen = []
    admission = queue.start_pass(FreeSlots(free_slots), now)
    for job in admission.offers:
        seen.append(job.arrival_number)
        if job.arrival_number in refuse:
            admission.refuse(job)
        else:
            queue.pop(job.arrival_number)
    queue.end_pass(admission)
    return seen


def test_first_in_is_first_offered() -> None:
    assert offered(waiting(5), [], free_slots=3)[:3] == [1, 2, 3]


def test_a_job_leaves_from_the_middle_and_the_order_stays() -> None:
    queue = waiting(5)
    assert queue.pop(3) is not None
    assert queue.pop(3) is None
    assert 3 not in queue
    assert offered(queue, [], free_slots=5) == [1, 2, 4, 5]


def test_behind_a_head_that_does_not_fit_the_next_few_are_tried() -> None:
    queue = waiting(20, skip_window=4)
    assert offered(queue, [1], free_slots=30) == [1, 2, 3, 4, 5]


def test_the_window_begins_at_the_first_that_does_not_fit() -> None:
    queue = waiting(20, skip_window=2)
    assert offered(queue, [4, 5], free_slots=30) == [1, 2, 3, 4, 5, 6]


def test_without_a_skip_window_no_job_overtakes() -> None:
    assert offered(waiting(5, skip_window=0), [2], free_slots=5) == [1, 2]


def test_no_job_overtakes_a_head_that_has_waited_too_long() -> None:
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.0) == [1, 2, 3, 4, 5]
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.1) == [1]


def test_a_head_that_has_waited_too_long_is_admitted_like_any_other() -> None:
    assert offered(waiting(3, skip_max_wait_s=30), [], free_slots=5, now=9999.0) == [1, 2, 3]


def test_without_a_free_slot_no_job_is_offered() -> None:
    assert offered(waiting(3), [], free_slots=0) == []


def test_a_pass_visits_few_jobs_however_many_wait() -> None:
    assert len(offered(waiting(1000, skip_window=8), range(1000), free_slots=4)) == 9


def test_the_queue_is_blocked_while_the_engine_refuses_a_job() -> None:
    queue = waiting(3, capacity=5)
    assert not queue.is_blocked
    offered(queue, [1, 2, 3], free_slots=4)
    assert queue.is_blocked
    offered(queue, [1], free_slots=4)  # 2 and 3 were admitted, 1 is still refused
    assert queue.is_blocked
    queue.pop(1)  # it leaves: other jobs may fit
    assert not queue.is_blocked


def test_clearing_returns_all_jobs_in_order() -> None:
    queue = waiting(4)
    assert [job.arrival_number for job in queue.clear()] == [1, 2, 3, 4]
    assert len(queue) == 0
    assert queue.head is None


def test_the_queue_sums_the_costs_of_its_jobs() -> None:
    queue = waiting(3)
    [line] = queue.lines.values()
    assert queue.costs == line.costs == {"": 3.0}
    queue.pop(2)
    queue.pop(2)
    assert queue.costs == line.costs == {"": 2.0}
    queue.clear()
    assert queue.costs == {}
