"""Which sequences run in the next step: pure arithmetic on ints. Knows no device, no page and no
caller.

Everybody who can decode does. Beside them the longest-waiting prompts are read in chunks within a
budget of tokens, so that a long prompt never stops the others for longer than one pass. `plan` cuts
a prompt by its own length alone, never by who else is there: that keeps an answer the same alone
and in company. `pack` fills one pass with several prompts, for where a pass costs the same however
few rows it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PACK_ALIGN = 16
"""Each piece of a packed pass starts at a multiple of so many rows."""
PACK_PIECES = 32
"""Most pieces of a packed pass."""
MOST_WASTE = 0.12
"""Largest share of a packed pass's rows that are there only because of its fixed width."""


@dataclass(frozen=True, slots=True)
class Standing(Generic[K]):
    """How far a sequence is: `done` of `total` prompt tokens are in the cache, or will be once what
    was launched has run. `new` are (index of the first token that is not there yet, tokens) of the
    pictures that must be encoded before that can be read, in order.
    """

    key: K
    done: int
    total: int
    new: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk(Generic[K]):
    """`length` prompt tokens from `start`."""

    key: K
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Pass(Generic[K]):
    """Chunks that are read together, in a warmed shape of `width` rows."""

    width: int
    chunks: tuple[Chunk[K], ...]


@dataclass(frozen=True, slots=True)
class Turn(Generic[K]):
    """One step: these sequences decode, these passes are read."""

    decode: tuple[K, ...]
    prefill: tuple[Pass[K], ...]


# -- widths --------------------------------------------------------------------------------------
def chunk_widths(largest: int) -> tuple[int, ...]:
    """The shapes in which prompts are read one by one, ascending: the largest, its half and its
    quarter.
    """
    return tuple(sorted({max(1, largest // 4), max(1, largest // 2), largest}))


def packed_widths(largest: int) -> tuple[int, ...]:
    """The shapes of packed passes, ascending from PACK_ALIGN to `largest` (rounded up to it), as
    few as waste at most MOST_WASTE of a pass.
    """
    widths, last = [PACK_ALIGN], aligned(largest)
    while widths[-1] < last:
        least = widths[-1] + PACK_ALIGN  # rows of the smallest pass that the next width is for
        most = int(least / (1 - MOST_WASTE)) // PACK_ALIGN * PACK_ALIGN
        widths.append(min(last, max(least, most)))
    return tuple(widths)


def aligned(rows: int) -> int:
    """`rows` rounded up to a multiple of PACK_ALIGN."""
    return -(-rows // PACK_ALIGN) * PACK_ALIGN


def powers_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself: decode widths where a step need not be the same for
    everybody.
    """
    return tuple(sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)}))


def decode_widths(slots: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16, 24, ... and the multiple of eight that takes all `slots`, from 64 on in steps
    of 16, from 128 on of 32: one graph each.
    """
    steps = (*range(8, 64, 8), *range(64, 128, 16), *range(128, slots + 32, 32))
    last = next((width for width in (1, 2, 4, *steps) if width >= slots), slots)
    return (*(width for width in (1, 2, 4, *steps) if width < last), last)


def fixed_width(slots: int) -> int:
    """The one decode width of `slots` sequences where a step must be the same for everybody: from
    four on a multiple of four, because matmul kernels give the odd rows at the end other bits.
    """
    return slots if slots < 4 else -(-slots // 4) * 4


# -- one prompt per pass -------------------------------------------------------------------------
def next_chunk(standing: Standing[K], widths: Sequence[int]) -> Pass[K]:
    """The next piece of a prompt: the smallest width that takes the rest, else the largest one."""
    rest = standing.total - standing.done
    width = next((w for w in widths if w >= rest), widths[-1])
    return Pass(width, (Chunk(standing.key, standing.done, min(rest, width)),))


def plan(standings: Sequence[Standing[K]], widths: Sequence[int]) -> Turn[K]:
    """The next step of `standings`, given in order of admission.

    Passes of different prompts share a step while their widths fit in the largest one; the first
    always runs, so that nobody waits for ever.
    """
    decode = tuple(s.key for s in standings if s.done == s.total)
    passes: list[Pass[K]] = []
    budget = widths[-1]
    for standing in standings:
        if standing.done == standing.total:
            continue
        found = next_chunk(standing, widths)
        if found.width > budget:
            break  # first come, first served: a small prompt does not overtake a large one
        budget -= found.width
        passes.append(found)
    return Turn(decode, tuple(passes))


# -- several prompts per pass --------------------------------------------------------------------
def pack(standings: Sequence[Standing[K]], widths: Sequence[int], picture_tokens: int) -> Turn[K]:
    """The next step of `standings`, given in order of admission, with one pass for all prompts.

    The pass is filled in order until its rows are spent; a prompt that does not fit is cut. One new
    picture is encoded for it, and more only while they have at most `picture_tokens` tokens in all:
    a prompt is cut before a picture that has to wait. The first prompt always moves on.
    """
    decode = tuple(s.key for s in standings if s.done == s.total)
    rows, pictures = widths[-1], _PictureBudget(picture_tokens)
    chunks: list[Chunk[K]] = []
    used = 0
    for standing in standings:
        if used == rows or len(chunks) == PACK_PIECES:
            break
        if standing.done == standing.total:
            continue
        end = pictures.spend(standing, min(standing.total, standing.done + rows - used))
        if end > standing.done:
            chunks.append(Chunk(standing.key, standing.done, end - standing.done))
            used += aligned(end - standing.done)
    if not chunks:
        return Turn(decode, ())
    width = next(w for w in widths if w >= used)
    return Turn(decode, (Pass(width, tuple(chunks)),))


class _PictureBudget:
    """What of `tokens` is left for new pictures in a step; the first picture may take more."""

    def __init__(self, tokens: int) -> None:
        self._left = tokens
        self._is_fresh = True

    def spend(self, standing: Standing[K], end: int) -> int:
        """Where a piece that would like to reach `end` has to end; takes what it needs."""
        for start, tokens in standing.new:
            if start >= end:
                break
            if tokens > self._left and not self._is_fresh:
                return start
            self._left -= tokens
            self._is_fresh = False
        return end
