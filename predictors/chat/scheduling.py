"""Plans the passes over prompts in one step, and learns what decoding and prompts cost. Pure
arithmetic.

Each given sequence that can decode does. Prompts are read in the order given, in chunks within a
budget of tokens, so that a long prompt never stops the others for longer than one pass.
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
CHEAP_ROWS = 256
"""Rows of a packed pass that together take little longer than one row."""
LEARN = 0.1
"""Weight of the newest step in the learned seconds."""


@dataclass(frozen=True, slots=True)
class SequenceProgress(Generic[K]):
    """How far the prefill of a sequence is: `done` of `total` tokens are in the cache, or will be
    once the launched work has run."""

    key: K
    done: int
    total: int
    new_pictures: tuple[tuple[int, int], ...] = ()
    """Pictures that must be encoded before their tokens are read, in order: (index of the picture's
    first token that is not in the cache, number of its tokens)."""


@dataclass(frozen=True, slots=True)
class PromptChunk(Generic[K]):
    """Tokens `start` .. `start + length` of a sequence's prompt."""

    key: K
    start: int
    length: int
    picture_tokens: int = 0
    """Tokens of the pictures that are encoded for it in this step."""


@dataclass(frozen=True, slots=True)
class PromptPass(Generic[K]):
    """A pass of `width` rows over chunks of one or several prompts."""

    width: int
    chunks: tuple[PromptChunk[K], ...]


@dataclass(frozen=True, slots=True)
class StepPlan(Generic[K]):
    """The sequences that decode one token in a step, and its passes over prompts."""

    decode: tuple[K, ...]
    prefill: tuple[PromptPass[K], ...]


# -- one prompt per pass -------------------------------------------------------------------------
def next_chunk(sequence: SequenceProgress[K], widths: Sequence[int]) -> PromptPass[K]:
    """A pass over a prompt's next chunk, of the least width that takes the rest of the prompt, else
    of the largest."""
    rest = sequence.total - sequence.done
    width = next((w for w in widths if w >= rest), widths[-1])
    return PromptPass(width, (_chunk(sequence, min(sequence.total, sequence.done + width)),))


def plan_single(
    sequences: Sequence[SequenceProgress[K]],
    widths: Sequence[int],
    others: Sequence[SequenceProgress[K]] = (),
    share: float = 1.0,
) -> StepPlan[K]:
    """The next step of `sequences`, given in order.

    A prompt is cut by its own length alone, so that an answer does not depend on other requests.
    Passes of different prompts share a step while the sum of their widths is at most the largest
    width. The first always runs, so that no prompt waits forever. Prompts of other callers
    (`others`) are added while the step takes no longer than those of `sequences` alone would on a
    `share` of the device.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    passes: list[PromptPass[K]] = []
    used, most = 0, widths[-1]
    for sequence in (*sequences, *others):
        if sequence.done == sequence.total:
            continue
        if others and sequence is others[0]:
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
    others: Sequence[SequenceProgress[K]] = (),
    share: float = 1.0,
    bound: PassBound | None = None,
) -> StepPlan[K]:
    """The next step of `sequences`, given in order, with one pass for all prompts: for devices
    where a pass costs the same however few rows it has.

    The pass is filled in order until no rows are left; a prompt that does not fit is cut. One new
    picture is encoded in a step, and further ones only while all have at most `picture_tokens`
    tokens together: a prompt is cut before a picture that has to wait. The first prompt always
    advances. Prompts of other callers (`others`) are added up to `CHEAP_ROWS`, and beyond while the
    pass takes no longer than those of `sequences` alone would on a `share` of the device. A `bound`
    allows fewer rows, and one new picture.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    filling = _OpenPass(widths[-1], picture_tokens, bound)
    chunks: list[PromptChunk[K]] = []
    for sequence in (*sequences, *others):
        if others and sequence is others[0]:
            filling.limit_to(max(CHEAP_ROWS, int(filling.used / share)))
        if filling.used >= filling.rows or len(chunks) == PACK_PROMPTS:
            break
        if sequence.done == sequence.total:
            continue
        end = filling.take(sequence)
        if end > sequence.done:
            chunks.append(_chunk(sequence, end))
    if not chunks:
        return StepPlan(decode, ())
    width = next(w for w in widths if w >= filling.used)
    return StepPlan(decode, (PromptPass(width, tuple(chunks)),))


def _chunk(sequence: SequenceProgress[K], end: int) -> PromptChunk[K]:
    new = sum(tokens for start, tokens in sequence.new_pictures if start < end)
    return PromptChunk(sequence.key, sequence.done, end - sequence.done, new)


class _OpenPass:
    """A packed pass that is being filled: its rows, those that are used, and the tokens left for
    new pictures. The first new picture may have more tokens than that."""

    def __init__(self, rows: int, picture_tokens: int, bound: PassBound | None) -> None:
        self._tokens = picture_tokens if bound is None else 0
        self._is_fresh = True
        self.rows = rows if bound is None else min(rows, bound.rows)
        self.used = 0

    def limit_to(self, rows: int) -> None:
        """Allow no more rows than these from now on, and no more new pictures."""
        self.rows = min(self.rows, rows)
        self._tokens, self._is_fresh = 0, False

    def take(self, sequence: SequenceProgress[K]) -> int:
        """Take rows and pictures for the sequence's next chunk; returns the chunk's end."""
        first, end = sequence.done, sequence.total
        for start, tokens in sequence.new_pictures:
            if start >= min(end, first + self.rows - self.used):
                break
            if not self._encode(tokens):
                end = start
                break
        end = min(end, first + self.rows - self.used)
        self.used += aligned(end - first)
        return end

    def _encode(self, tokens: int) -> bool:
        """Take a picture of so many tokens. False if it must wait."""
        if tokens > self._tokens and not self._is_fresh:
            return False
        self._tokens -= tokens
        self._is_fresh = False
        return True


# -- costs ---------------------------------------------------------------------------------------
class StepCosts:
    """Learns the seconds of decoding by the number of rows, and of prompts by units, and splits the
    seconds of a step by them. A unit is a token; with measured `times`, a measured second."""

    def __init__(self, times: PassTimes | None = None) -> None:
        self._decode_s: dict[int, float] = {} if times is None else dict(times.decode)  # by rows
        self._unit_s = 0.0 if times is None else 1.0  # seconds of a unit of prompts

    def decode_s(self, num_rows: int) -> float:
        """Seconds of decoding so many rows, interpolated between numbers of rows that were seen; 0
        before the first."""
        if not num_rows or not self._decode_s:
            return 0.0
        return interpolated_seconds(self._decode_s, num_rows)

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


def interpolated_seconds(seconds: Mapping[int, float], size: int) -> float:
    """The seconds of `size`, interpolated linearly between the nearest sizes of `seconds`, which is
    not empty; those of the nearest size outside of them."""
    if size in seconds:
        return seconds[size]
    below = max((s for s in seconds if s < size), default=0)
    above = min((s for s in seconds if s > size), default=0)
    if not below or not above:
        return seconds[below or above]
    part = (size - below) / (above - below)
    return seconds[below] + part * (seconds[above] - seconds[below])


class PromptWait:
    """How long prompts that need not be read at once still wait. Decoding gets as many seconds as
    the last pass over prompts took. Where prompts share a pass they also wait for some steps, so
    that more of them share it."""

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

    def note_decoding(self, seconds: float) -> None:
        """Count a launched step with so many seconds of decoding."""
        self._left_s -= seconds
        self._left_steps -= 1

    def start(self, seconds: float, least_steps: int) -> None:
        """Begin a wait, after a launched pass over prompts: for so many seconds of decoding and
        `least_steps` steps."""
        self._left_s, self._left_steps = seconds, least_steps


def _learned(known: float, new: float) -> float:
    return known + LEARN * (new - known) if known else new
