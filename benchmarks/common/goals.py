"""Goals: a figure that has to be at least or at most a limit, beside its measurement. A goal
without a measurement is not reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Iterable[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Goal:
    """`measured` has to be at most `limit`, or at least if `is_least`."""

    what: str
    limit: float
    is_least: bool = False
    wish: float | None = None
    """A limit that is hoped for, beyond the one that was asked for."""
    other: float | None = None
    """The figure of another server, measured elsewhere."""

    def met(self, measured: float, limit: float) -> bool:
        return measured >= limit if self.is_least else measured <= limit

    def result(self, measured: float) -> dict[str, Any]:
        found = {
            "what": self.what,
            "measured": measured,
            "limit": self.limit,
            "at": "least" if self.is_least else "most",
            "held": self.met(measured, self.limit),
        }
        if self.wish is not None:
            found |= {"wish": self.wish, "wish_held": self.met(measured, self.wish)}
        return found if self.other is None else found | {"other": self.other}


def goal_cells(goal: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The cells of a table: what, measured, asked for, reached."""
    return (
        goal["what"],
        f"{goal['measured']:.4g}",
        f"at {goal['at']} {goal['limit']:.3g}",
        "yes" if goal["held"] else "**no**",
    )
