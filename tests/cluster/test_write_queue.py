"""The queue keeps its order, merges writes of equal keys and is bounded."""

from __future__ import annotations

from predictors.cluster.events import PodEvent
from predictors.cluster.write_queue import ApiWrite, WriteQueue


def write(reason: str, at: float = 0.0, *, is_deferrable: bool = False) -> ApiWrite:
    return ApiWrite(
        "Pod", event=PodEvent(reason, f"at {at}", is_deferrable=is_deferrable, first=at, last=at)
    )


def reasons(writes: list[ApiWrite]) -> list[str]:
    return [each.event.reason for each in writes if each.event is not None]


def test_events_of_equal_keys_are_merged_with_the_first_time_and_the_last_message() -> None:
    queue = WriteQueue()
    for at in (1.0, 2.0, 3.0):
        queue.add(write("WarmingUp", at))
    (only,) = queue.pop_all()
    assert only.event == PodEvent("WarmingUp", "at 3.0", count=3, first=1.0, last=3.0)
    assert not queue


def test_a_later_annotation_replaces_an_earlier_one() -> None:
    queue = WriteQueue()
    for text in ("a", "b"):
        queue.add(ApiWrite("annotation", text))
    assert [each.text for each in queue.pop_all()] == ["b"]


def test_writes_that_failed_go_before_those_added_since() -> None:
    queue = WriteQueue()
    for reason in ("Loading", "WarmingUp"):
        queue.add(write(reason, 1.0))
    taken = queue.pop_all()
    queue.add(write("WarmingUp", 2.0))
    queue.add(write("Ready", 2.0))
    queue.put_back(taken)
    again = queue.pop_all()
    assert reasons(again) == ["Loading", "WarmingUp", "Ready"]
    assert again[1].event == PodEvent("WarmingUp", "at 2.0", count=2, first=1.0, last=2.0)


def test_a_full_queue_drops_the_oldest_write() -> None:
    queue = WriteQueue(capacity=3)
    for number in range(5):
        queue.add(write(f"Reason{number}"))
    assert reasons(queue.pop_all()) == ["Reason2", "Reason3", "Reason4"]


def test_one_urgent_write_makes_the_queue_urgent() -> None:
    queue = WriteQueue()
    queue.add(write("WarmingUp", is_deferrable=True))
    queue.add(ApiWrite("annotation", "1/7"))
    assert queue.is_deferrable
    queue.add(write("Ready"))
    assert not queue.is_deferrable
