"""Which sequences run in the next step: pure arithmetic on ints. Knows no device, no page and no
caller.

Everybody who can decode does. Beside them, the longest-waiting prompts are read in chunks within a
budget of tokens, so that a long prompt never stops the others for longer than one chunk. How a
prompt is cut depends on its own length alone, never on who else is there: that keeps an answer the
same alone and in company.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Standing(Generic[K]):
    """How far a sequence is: `done` of `total` prompt tokens are in the cache."""

    key: K
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Chunk(Generic[K]):
    """`length` prompt tokens from `start`, run in a compiled shape of `width` rows."""

    key: K
    start: int
    length: int
    width: int


@dataclass(frozen=True, slots=True)
class Turn(Generic[K]):
    """One step: these sequences decode, these chunks are read."""

    decode: tuple[K, ...]
    prefill: tuple[Chunk[K], ...]


def chunk_widths(largest: int) -> tuple[int, ...]:
    """The shapes in which prompts are read, ascending: the largest, its half and its quarter."""
    return tuple(sorted({max(1, largest // 4), max(1, largest // 2), largest}))


def powers_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself: decode widths where a step need not be the same for
    everybody.
    """
    return tuple(sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)}))


def fixed_width(slots: int) -> int:
    """The one decode width of `slots` sequences where a step must be the same for everybody: from
    four on a multiple of four, because matmul kernels give the odd rows at the end other bits.
    """
    return slots if slots < 4 else -(-slots // 4) * 4


def next_chunk(standing: Standing[K], widths: Sequence[int]) -> Chunk[K]:
    """The next piece of a prompt: the smallest width that takes the rest, else the largest one."""
    rest = standing.total - standing.done
    width = next((w for w in widths if w >= rest), widths[-1])
    return Chunk(standing.key, standing.done, min(rest, width), width)


def plan(standings: Sequence[Standing[K]], widths: Sequence[int]) -> Turn[K]:
    """The next step of `standings`, given in order of admission.

    Chunks of different prompts share a step while their widths fit in the largest one; the first
    always runs, so that nobody waits for ever.
    """
    decode = tuple(s.key for s in standings if s.done == s.total)
    chunks: list[Chunk[K]] = []
    budget = widths[-1]
    for standing in standings:
        if standing.done == standing.total:
            continue
        chunk = next_chunk(standing, widths)
        if chunk.width > budget:
            break  # first come, first served: a small prompt does not overtake a large one
        budget -= chunk.width
        chunks.append(chunk)
    return Turn(decode, tuple(chunks))
