"""Plans a step: the sequences that decode, and the parts of prompts that are read beside them.

All sequences that can decode do. The longest-waiting prompts are read in chunks within a budget of
tokens, so that a long prompt never stops the others for longer than one pass. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from predictors.chat.limits import aligned

K = TypeVar("K", bound=Hashable)

PACK_PROMPTS = 32
"""Most prompts in a packed pass."""


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
    return PromptPass(width, (PromptChunk(sequence.key, sequence.done, min(rest, width)),))


def plan_single(sequences: Sequence[SequenceProgress[K]], widths: Sequence[int]) -> StepPlan[K]:
    """The next step of `sequences`, given in order of admission.

    A prompt is cut by its own length alone, so that an answer does not depend on other requests.
    Passes of different prompts share a step while their widths fit in the largest one. The first
    always runs, so that no prompt waits forever.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    passes: list[PromptPass[K]] = []
    budget = widths[-1]
    for sequence in sequences:
        if sequence.done == sequence.total:
            continue
        found = next_chunk(sequence, widths)
        if found.width > budget:
            break  # first come, first served: a small prompt does not overtake a large one
        budget -= found.width
        passes.append(found)
    return StepPlan(decode, tuple(passes))


# -- several prompts per pass --------------------------------------------------------------------
def plan_packed(
    sequences: Sequence[SequenceProgress[K]], widths: Sequence[int], picture_tokens: int
) -> StepPlan[K]:
    """The next step of `sequences`, given in order of admission, with one pass for all prompts: for
    devices where a pass costs the same however few rows it has.

    The pass is filled in order until no rows are left; a prompt that does not fit is cut. One new
    picture is encoded in a step, and more only while they have at most `picture_tokens` tokens in
    all: a prompt is cut before a picture that has to wait. The first prompt always advances.
    """
    decode = tuple(s.key for s in sequences if s.done == s.total)
    rows, pictures = widths[-1], _PictureBudget(picture_tokens)
    chunks: list[PromptChunk[K]] = []
    used = 0
    for sequence in sequences:
        if used == rows or len(chunks) == PACK_PROMPTS:
            break
        if sequence.done == sequence.total:
            continue
        end = pictures.spend(sequence, min(sequence.total, sequence.done + rows - used))
        if end > sequence.done:
            chunks.append(PromptChunk(sequence.key, sequence.done, end - sequence.done))
            used += aligned(end - sequence.done)
    if not chunks:
        return StepPlan(decode, ())
    width = next(w for w in widths if w >= used)
    return StepPlan(decode, (PromptPass(width, tuple(chunks)),))


class _PictureBudget:
    """Tokens left for new pictures in a step; the first picture may take more."""

    def __init__(self, tokens: int) -> None:
        self._left = tokens
        self._is_fresh = True

    def spend(self, sequence: SequenceProgress[K], end: int) -> int:
        """The end of a chunk that could reach `end`; spends the tokens of its pictures."""
        for start, tokens in sequence.new:
            if start >= end:
                break
            if tokens > self._left and not self._is_fresh:
                return start
            self._left -= tokens
            self._is_fresh = False
        return end
