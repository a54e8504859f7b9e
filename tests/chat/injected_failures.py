"""Lets one call of a method fail, as late as it can, and repeats the step in which it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.chat.room import Room, deltas_of


def fail_after_call(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], method: str, at: int
) -> list[int]:
    """Call number `at` of the method raises once all its writes have happened. The list has the
    numbers of the calls so far."""
    calls: list[int] = []
    original = getattr(owner, method)

    def failing(self: Any, *args: Any) -> Any:
        calls.append(len(calls) + 1)
        result = original(self, *args)
        if calls[-1] == at:
            raise RuntimeError("injected")
        return result

    monkeypatch.setattr(owner, method, failing)
    return calls


def finish_with_repeats(room: Room, jobs: Sequence[Any], *, together: bool) -> int:
    """Step until the engine is idle, and return how many steps raised. Nothing of such a step
    reaches the jobs. It is repeated with all of its jobs `together`, or with each alone, those too
    that the first of them saw end."""
    failures = 0
    while room.engine.busy:
        seen = [len(deltas_of(job)) for job in jobs]
        active = room.engine.active
        try:
            room.engine.step(active)
        except RuntimeError:
            failures += 1
            assert [len(deltas_of(job)) for job in jobs] == seen
            for group in [active] if together else [[job] for job in active]:
                room.engine.step(group)
    return failures
