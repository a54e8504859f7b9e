"""Lets one call of a method fail, as late as it can."""

from __future__ import annotations

from typing import Any

import pytest


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
