"""The base of the groups of settings: bounded fields, and the names of their variables.

`queue.capacity` is read from `PREDICTORS_QUEUE_CAPACITY`. A field is checked once, when its group
is made.
"""

from __future__ import annotations

import math
import typing
from dataclasses import Field, dataclass, field, fields

from predictors.errors import InvalidRequest

T = typing.TypeVar("T")

PREFIX = "PREDICTORS"
AUTO_ON_OFF = ("auto", "on", "off")
MAX_PORT = 65535


class InvalidSetting(InvalidRequest):
    """An environment variable has a value that can't be used; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Values that a setting accepts: one of `choices` if there are any, else a range."""

    least: float = 0
    most: float = math.inf
    choices: tuple[object, ...] = ()

    def check(self, name: str, value: object) -> None:
        """Raise `InvalidSetting` if `value` of the variable `name` is out of bounds."""
        if self.choices:
            if value not in self.choices:
                choices = ", ".join(map(str, self.choices))
                raise InvalidSetting(f"{name} must be one of {choices}, not {value!r}")
        elif isinstance(value, int | float) and not (
            self.least <= value <= self.most and math.isfinite(value)
        ):
            span = f"a finite number of at least {self.least}"
            if math.isfinite(self.most):
                span = f"from {self.least} to {self.most}"
            raise InvalidSetting(f"{name} must be {span}, not {value!r}")


def bounds_of(knob: Field[typing.Any]) -> Bounds:
    """The bounds of a field; a number without any must be finite and at least 0."""
    bounds: Bounds = knob.metadata.get("bounds", Bounds())
    return bounds


def bounded(
    default: T, *, least: float = 0, most: float = math.inf, choices: tuple[T, ...] = ()
) -> T:
    """A dataclass field with a default and bounds."""
    made: T = field(default=default, metadata={"bounds": Bounds(least, most, choices)})
    return made


class SettingsGroup:
    """Base of the groups: checks every field once, when the group is made."""

    __slots__ = ()
    section: typing.ClassVar[str]
    """Name of the group in `Settings` and in its variables."""

    def __post_init__(self) -> None:
        for knob in fields(self):  # type: ignore[arg-type]
            value = getattr(self, knob.name)
            bounds_of(knob).check(variable_name(type(self), knob.name), value)


def variable_name(group: type[SettingsGroup], knob: str) -> str:
    """The environment variable of a field: `PREDICTORS_QUEUE_CAPACITY` for `queue.capacity`."""
    return f"{PREFIX}_{group.section}_{knob}".upper()
