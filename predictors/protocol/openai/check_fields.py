"""Fields of picture services that ask for a check of what was drawn. The operator of this server
sets the check: where there is one they change nothing, and where there is none they are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import DescribedRule, dropped, naming

_CHECK = "the operator sets the check of pictures"
MOST_TOLERANT = 6  # of Black Forest Labs' and fal's scale, which begins at 0


def _is_strict(tolerance: str | float) -> bool:
    try:
        number = float(tolerance) if isinstance(tolerance, str) else tolerance
    except ValueError:
        return True
    return not number >= MOST_TOLERANT


def _asking(asks: Callable[[Any], bool], refused: str, *kinds: type) -> DescribedRule:
    return naming(dropped(*kinds, why=_CHECK), asks, f"without one {refused} is refused")


CHECK_FIELDS: dict[str, DescribedRule] = {
    "enable_safety_checker": _asking(lambda value: value is True, "`true`", bool),
    "disable_safety_checker": _asking(lambda value: value is False, "`false`", bool),
    "safety_tolerance": _asking(_is_strict, f"all below `{MOST_TOLERANT}`", str, float),
}
"""By name. The codec of a model without a checker refuses those that ask for one."""


def no_check(field: str) -> InvalidRequest:
    """The failure of a request for a check that is not made, by the name of its field."""
    return InvalidRequest(
        f"{field} asks for a check of the picture, and this server makes none: leave the field "
        "out, or ask the operator to set a checker",
        param=field,
    )
