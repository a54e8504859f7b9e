"""The prompts' part of a step, and what parts of steps cost. Pure arithmetic.

All sequences that are given and can decode do. Prompts are read in the order given, in chunks
within a budget of tokens, so that a long prompt never stops the others for longer than one pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from predictors.chat.limits import aligned

if TYPE_CHECKING:
    from predictors.chat.step_budget import PassBound, PassTimes

K = TypeVar("K", bound=Hashable)

PACK_PROMPTS = 32
"""Most prompts in a packed pass."""
GUEST_ROWS = 256
"""Rows of a packed pass that take little longer than the first."""
LEARN = 0.1
"""Weight of the newest step in what is learned of steps."""


@dataclass(frozen=True, slots=True)
class SequenceProgress(Generic[K]):
    """How far a sequence is: `done` of `total` prompt tokens are in the cache, or will be once the
    launched work has run. `new` are the pictures that must be encoded first, in order: (index of
    the first token that is not in the cache, tokens of the picture)."""

    key: K
    done: int
    total: int
    new: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptChunk(Generic[K]):
    key: K
    start: int
    length: int
    new: int = 0
    """Tokens of pictures that are encoded for it."""


@dataclass(frozen=True, slots=True)
class PromptPass(Generic[K]):
    width: int
    chunks: tuple[PromptChunk[K], ...]


@dataclass(frozen=True, slots=True)
class StepPlan(Generic[K]):
    decode: tuple[K, ...]
    prefill: tuple[PromptPass[K], ...]


# -- one prompt per pass -------------------------------------------------------------------------
def next_chunk(sequence: SequenceProgress[K], widths: Sequence[int]) -> PromptPass[K]:
    """A pass over a prompt's next chunk: least width that takes the rest, else the largest."""
    rest = sequence.total - sequence.done
    width = next((w for w in widths if w >= rest), widths[-1])
    return PromptPass(width, (_chunk(sequence, min(sequence.total, sequence.done + width)),))


def plan_single(
    sequences: Sequence[SequenceProgress[K]],
    widths: Sequence[int],
    guests: Sequence[SequenceProgress[K]] = (),
    share: float = 1.0,
) -> StepPlan[K]:
    """The next step of `sequences`, given in order.

    A prompt is cut by its own length alone, so that an answer does not depend on other requests.
    Passes of different prompts share a step while their widths fit in the largest one. The first
    always runs, so that no prompt waits forever. Prompts of other callers, `guests`, are added
    while the step takes no longer than the first ones' alone would on a `share` of the device.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    passes: list[PromptPass[K]] = []
    used, most = 0, widths[-1]
    for sequence in (*sequences, *guests):
        if sequence.done == sequence.total:
            continue
        if guests and sequence is guests[0]:
            most = min(most, int(used / share))
        found = next_chunk(sequence, widths)
        if used + found.width > most:
            break  # first come, first served: a small prompt does not overtake a large one
        used += found.width
        passes.append(found)
    return StepPlan(decode, tuple(passes))


# -- several prompts per pass --------------------------------------------------------------------
def plan_packed(
    sequences: Sequence[SequenceProgress[K]],
    widths: Sequence[int],
    picture_tokens: int,
    guests: Sequence[SequenceProgress[K]] = (),
    share: float = 1.0,
    bound: PassBound | None = None,
) -> StepPlan[K]:
    """The next step of `sequences`, given in order, with one pass for all prompts: for devices
    where a pass costs the same however few rows it has.

    The pass is filled in order until no rows are left; a prompt that does not fit is cut. One new
    picture is encoded in a step, and more only while they have at most `picture_tokens` tokens in
    all: a prompt is cut before a picture that has to wait. The first prompt always advances.
    Prompts of other callers, `guests`, are added up to `GUEST_ROWS`, and beyond while the pass
    takes no longer than the first ones alone would on a `share` of the device. A `bound` leaves
    fewer rows and pictures, see `PassBound`.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    room = _PassRoom(widths[-1], picture_tokens, bound)
    chunks: list[PromptChunk[K]] = []
    for sequence in (*sequences, *guests):
        if guests and sequence is guests[0]:
            room.limit_to(max(GUEST_ROWS, int(room.used / share)))
        if room.used >= room.rows or len(chunks) == PACK_PROMPTS:
            break
        if sequence.done == sequence.total:
            continue
        end = room.take(sequence)
        if end > sequence.done:
            chunks.append(_chunk(sequence, end))
    if not chunks:
        return StepPlan(decode, ())
    width = next(w for w in widths if w >= room.used)
    return StepPlan(decode, (PromptPass(width, tuple(chunks)),))


def _chunk(sequence: SequenceProgress[K], end: int) -> PromptChunk[K]:
    new = sum(tokens for start, tokens in sequence.new if start < end)
    return PromptChunk(sequence.key, sequence.done, end - sequence.done, new)


class _PassRoom:
    """The rows of a pass, those that are used, and the tokens left for new pictures in its step;
    the first picture may take more."""

    def __init__(self, rows: int, picture_tokens: int, bound: PassBound | None) -> None:
        self._bound = bound
        self._tokens = picture_tokens
        self._is_fresh = True
        self._vision_s = 0.0
        self.rows = rows if bound is None else min(rows, bound.rows())
        self.used = 0

    def limit_to(self, rows: int) -> None:
        """No more rows than these from now on, and no more new pictures."""
        self.rows = min(self.rows, rows)
        self._tokens, self._is_fresh = 0, False

    def take(self, sequence: SequenceProgress[K]) -> int:
        """The end of the sequence's chunk, whose rows and pictures are taken."""
        first, end = sequence.done, sequence.total
        for start, tokens in sequence.new:
            if start >= min(end, first + self.rows - self.used):
                break
            if not self._encode(tokens, self.used + start - first):
                end = start
                break
        end = min(end, first + self.rows - self.used)
        self.used += aligned(end - first)
        return end

    def _encode(self, tokens: int, used: int) -> bool:
        """Take a picture of so many tokens behind `used` rows, if it need not wait."""
        if tokens > self._tokens and not self._is_fresh:
            return False
        if (bound := self._bound) is not None:
            vision_s = self._vision_s + bound.times.vision_s(tokens)
            rows = min(self.rows, bound.rows(vision_s))
            if used >= rows or not (self._is_fresh or bound.has_room(vision_s)):
                return False
            self.rows, self._vision_s = rows, vision_s
        self._tokens -= tokens
        self._is_fresh = False
        return True


# -- costs ---------------------------------------------------------------------------------------
class StepCosts:
    """Learns the seconds of a step's decoding by its rows, and of prompts by units, and splits
    steps by them. A unit is a token or, with measured `times` to start with, a measured second."""

    def __init__(self, times: PassTimes | None = None) -> None:
        self._decode_s: dict[int, float] = {} if times is None else dict(times.decode)  # by rows
        self._unit_s = 0.0 if times is None else 1.0  # of a unit of prompts

    def decode_s(self, num_rows: int) -> float:
        """Seconds of a step's decoding with so many rows, on the line between the nearest numbers
        of rows that were seen; 0 before the first."""
        if not num_rows or not self._decode_s:
            return 0.0
        return seconds_between(self._decode_s, num_rows)

    def expected(self, num_rows: int, units: float) -> tuple[float, float]:
        """Seconds of decoding, and of reading so many units of prompts."""
        return self.decode_s(num_rows), self._unit_s * units

    def split(self, num_rows: int, units: float, seconds: float) -> tuple[float, float]:
        """The parts of a step of `seconds` that went into `num_rows` rows of decoding and into
        `units` of prompts."""
        if not units:
            if num_rows:
                self._decode_s[num_rows] = _learned(self._decode_s.get(num_rows, 0.0), seconds)
            return seconds, 0.0
        if not num_rows:
            self._unit_s = _learned(self._unit_s, seconds / units)
            return 0.0, seconds
        decode_s, prompt_s = self.expected(num_rows, units)
        if decode_s:
            self._unit_s = _learned(self._unit_s, max(0.0, seconds - decode_s) / units)
            prompt_s = self._unit_s * units
        total = decode_s + prompt_s
        part = decode_s / total if total else 0.5
        return seconds * part, seconds * (1 - part)


def seconds_between(seconds: Mapping[int, float], size: int) -> float:
    """On the line between the nearest sizes of `seconds`, which has one at least; outside of them
    the nearest one's."""
    if size in seconds:
        return seconds[size]
    below = max((s for s in seconds if s < size), default=0)
    above = min((s for s in seconds if s > size), default=0)
    if not below or not above:
        return seconds[below or above]
    part = (size - below) / (above - below)
    return seconds[below] + part * (seconds[above] - seconds[below])


class PromptHold:
    """The wait of prompts that need not be read at once. Decoding gets as long as the last pass
    over prompts took. Where prompts share a pass they wait for some more steps, so that more of
    them share it."""

    def __init__(self) -> None:
        self._left_s = 0.0
        self._left_steps = 0

    @property
    def is_over(self) -> bool:
        return self.has_decoded and self._left_steps <= 0

    @property
    def has_decoded(self) -> bool:
        """True once decoding has had its seconds."""
        return self._left_s <= 0

    def decoded(self, seconds: float) -> None:
        """A step with so many seconds of decoding was launched."""
        self._left_s -= seconds
        self._left_steps -= 1

    def read(self, seconds: float, least_steps: int) -> None:
        """A pass over prompts was launched: the next ones wait for so many seconds of decoding, and
        for `least_steps`."""
        self._left_s, self._left_steps = seconds, least_steps


def _learned(known: float, new: float) -> float:
    return known + LEARN * (new - known) if known else new
