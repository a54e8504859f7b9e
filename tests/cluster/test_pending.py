"""What waits to be told keeps its order, merges what is equal and is never too much."""

from __future__ import annotations

from predictors.cluster.events import Notice
from predictors.cluster.pending import Errand, Pending


def errand(reason: str, at: float = 0.0, *, can_wait: bool = False) -> Errand:
    """Something that happened once."""
    return Errand("Pod", notice=Notice(reason, f"at {at}", can_wait=can_wait, first=at, last=at))


def reasons(errands: list[Errand]) -> list[str]:
    """In order."""
    return [each.notice.reason for each in errands if each.notice is not None]


def test_equal_things_are_one_with_the_first_time_and_the_last_words() -> None:
    pending = Pending()
    for at in (1.0, 2.0, 3.0):
        pending.add(errand("WarmingUp", at))
    (only,) = pending.take()
    assert only.notice == Notice("WarmingUp", "at 3.0", count=3, first=1.0, last=3.0)
    assert not pending


def test_the_last_text_of_an_annotation_counts() -> None:
    pending = Pending()
    for text in ("a", "b"):
        pending.add(Errand("annotation", text))
    assert [each.text for each in pending.take()] == ["b"]


def test_what_could_not_be_told_goes_before_what_came_meanwhile() -> None:
    pending = Pending()
    for reason in ("Loading", "WarmingUp"):
        pending.add(errand(reason, 1.0))
    taken = pending.take()
    pending.add(errand("WarmingUp", 2.0))
    pending.add(errand("Ready", 2.0))
    pending.put_back(taken)
    again = pending.take()
    assert reasons(again) == ["Loading", "WarmingUp", "Ready"]
    assert again[1].notice == Notice("WarmingUp", "at 2.0", count=2, first=1.0, last=2.0)


def test_the_oldest_is_lost_when_there_is_too_much() -> None:
    pending = Pending(capacity=3)
    for number in range(5):
        pending.add(errand(f"Reason{number}"))
    assert reasons(pending.take()) == ["Reason2", "Reason3", "Reason4"]


def test_one_urgent_thing_makes_all_urgent() -> None:
    pending = Pending()
    pending.add(errand("WarmingUp", can_wait=True))
    pending.add(Errand("annotation", "1/7"))
    assert pending.can_wait
    pending.add(errand("Ready"))
    assert not pending.can_wait
