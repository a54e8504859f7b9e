"""The bound on prompts beside rows that decode: measured seconds of passes by width, and the widest
pass that keeps to a multiple of the decode step. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from predictors.chat.scheduling import interpolated_seconds

ONE_READING = 1.25
"""A pass that takes at most so many times the seconds of the narrowest is taken to be bound by
reading the weights once, as the narrowest is."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Measured seconds of passes with little in the cache, by size in ascending order."""

    decode: Mapping[int, float]
    """Seconds of a decode step, by rows."""
    prompt: Mapping[int, float]
    """Seconds of a pass over prompts, by width."""
    vision: Mapping[int, float]
    """Seconds of the vision tower, by the tokens of a picture."""
    mixed: Mapping[int, float] = field(default_factory=dict)
    """Seconds of a pass over prompts and the widest decode step, by width of the prompts. Empty
    where both have passes of their own."""

    @classmethod
    def of(
        cls,
        decode: Mapping[int, float],
        prompt: Mapping[int, float],
        vision: Mapping[int, float],
        mixed: Mapping[int, float] | None = None,
    ) -> PassTimes:
        """Times from measurements in any order. A time above that of a wider pass is lowered to it:
        the machine was busy with other work."""
        return cls(*map(_ascending, (decode, prompt, vision, mixed or {})))

    def decode_s(self, rows: int) -> float:
        """Seconds of a step in which so many rows decode."""
        return _in_proportion(self.decode, rows)

    def prompt_s(self, rows: int, num_decoding: int = 0) -> float:
        """Seconds of a pass over so many rows of prompts: of the least width that takes them. In a
        step in which `num_decoding` rows decode, the seconds more that it takes with the pass."""
        width = next((w for w in self.prompt if w >= rows), max(self.prompt))
        return self._more_s(width, num_decoding) * max(1.0, rows / width)

    def _more_s(self, width: int, num_decoding: int) -> float:
        """Seconds that a pass of this width adds to a step in which so many rows decode."""
        if not num_decoding or width not in self.mixed:
            return self.prompt[width]
        return max(0.0, self.mixed[width] - self.decode_s(num_decoding))

    def vision_s(self, tokens: int) -> float:
        """Seconds of the tower for a picture of so many tokens."""
        return _in_proportion(self.vision, tokens) if tokens else 0.0

    def widest(self, most_s: float, num_decoding: int) -> int:
        """The widest pass that adds at most so many seconds to a step in which so many rows decode;
        0 without one."""
        fitting = (w for w in self.prompt if self._more_s(w, num_decoding) <= most_s)
        return max(fitting, default=0)

    @property
    def free_rows(self) -> int:
        """Width of the widest pass beside rows that decode that is bound by reading the weights
        once."""
        seconds = self.mixed or self.prompt
        least_s = next(iter(seconds.values()))
        return max(w for w, s in seconds.items() if s <= ONE_READING * least_s)


@dataclass(frozen=True, slots=True)
class PassBound:
    """The bound on a pass over prompts in a step in which `num_decoding` rows decode: `most_s`
    seconds more, without the vision tower, but always the rows that are free
    (`PassTimes.free_rows`)."""

    times: PassTimes
    most_s: float
    num_decoding: int

    @property
    def rows(self) -> int:
        """Most rows of the pass."""
        widest = self.times.widest(self.most_s, self.num_decoding)
        return max(self.times.free_rows, widest)


@dataclass(frozen=True, slots=True)
class StepBudget:
    """The bound of an engine: while rows decode, a pass over prompts adds at most `steps` times the
    measured decode step of that many rows."""

    times: PassTimes
    steps: float

    def beside(self, num_rows: int) -> PassBound:
        """The bound in a step in which `num_rows` decode."""
        return PassBound(self.times, self.steps * self.times.decode_s(num_rows), num_rows)

    def prompt_s(self, rows: int, picture_tokens: int, num_decoding: int) -> float:
        """Seconds that a pass over so many rows, and the tower before it, add to a step in which
        `num_decoding` rows decode."""
        times = self.times
        return times.prompt_s(rows, num_decoding) + times.vision_s(picture_tokens)

    def describe(self) -> dict[str, object]:
        """The measured milliseconds, and the rows that a pass may have by rows that decode.
        JSON takes only text as keys."""
        times = self.times
        return {
            "steps": self.steps,
            "rows": {str(rows): self.beside(rows).rows for rows in times.decode},
            "decode_ms": _in_ms(times.decode),
            "prompt_ms": _in_ms(times.prompt),
            "vision_ms": _in_ms(times.vision),
            "mixed_ms": _in_ms(times.mixed),
        }


def _ascending(seconds: Mapping[int, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    least = float("inf")
    for size in sorted(seconds, reverse=True):
        found[size] = least = min(least, seconds[size])
    return dict(reversed(found.items()))


def _in_proportion(seconds: Mapping[int, float], size: int) -> float:
    """As `interpolated_seconds`, but in proportion above all sizes."""
    return interpolated_seconds(seconds, size) * max(1.0, size / max(seconds))


def _in_ms(seconds: Mapping[int, float]) -> dict[str, float]:
    return {str(size): round(1e3 * s, 3) for size, s in seconds.items()}
