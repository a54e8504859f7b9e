"""Fields of picture services that ask for a check of what was drawn. The operator of this server
sets the check: where there is one they change nothing, and where there is none they are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import DROP, DescribedRule, dropped

_CHECK = "the operator sets the check of pictures"
MOST_TOLERANT = 6  # of Black Forest Labs' and fal's scale, which begins at 0


def _asks(asks: Callable[[Any], bool], refused: str, *kinds: type) -> DescribedRule:
    """A rule with the field's own name as the checked value where it asks for a check, by which a
    model's codec can refuse it. `refused` says which values these are."""
    usual = dropped(*kinds, why=_CHECK)

    def rule(name: str, value: Any) -> object:
        usual.check(name, value)
        return name if asks(value) else DROP

    about = str(usual.schema["description"]).rstrip(".")
    text = f"{about}; without one {refused} is refused."
    return DescribedRule(rule, {**usual.schema, "description": text})


def _is_strict(tolerance: str | float) -> bool:
    try:
        number = float(tolerance) if isinstance(tolerance, str) else tolerance
    except ValueError:
        return True
    return not number >= MOST_TOLERANT


CHECK_FIELDS: dict[str, DescribedRule] = {
    "enable_safety_checker": _asks(lambda value: value is True, "`true`", bool),
    "disable_safety_checker": _asks(lambda value: value is False, "`false`", bool),
    "safety_tolerance": _asks(_is_strict, f"all below `{MOST_TOLERANT}`", str, float),
}


def take_check(read: dict[str, Any]) -> dict[str, Any]:
    """Checked fields with `asks_check`, the name of the first of these that asks for a check, in
    their place."""
    found = [read.pop(name) for name in CHECK_FIELDS if name in read]
    return {**read, "asks_check": found[0]} if found else read


def no_check(field: str) -> InvalidRequest:
    """The failure of a request for a check that is not made, by the name of its field."""
    return InvalidRequest(
        f"{field} asks for a check of the picture, and this server makes none: leave the field "
        "out, or ask the operator to set a checker",
        param=field,
    )
