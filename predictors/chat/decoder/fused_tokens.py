"""Both ends of a decode step on a GPU: the newest tokens in, the most likely next ones out. Knows
kernels and what they keep of each sequence; knows no block.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from predictors.chat.decoder.fused_linears import power_of_two
from predictors.chat.decoder.token_kernels import (
    best_kernel,
    best_of_parts_kernel,
    feed_kernel,
)

BEST_BLOCK = 2048


class Memory(Protocol):
    """What `Slots` keeps, as far as kernels need it."""

    feed: Tensor
    seen: Tensor
    counts: Tensor
    counted: Tensor

    def keep(self, slots: Tensor, numbers: Tensor, tokens: Tensor) -> None:
        """See `Slots.keep`."""
        ...


def fed(memory: Memory, slots: Tensor, numbers: Tensor, embedding: Tensor) -> Tensor:
    """The embeddings (rows, hidden) of tokens number `numbers` of `slots`, which are counted from
    now on; as `Slots.fed`."""
    x = embedding.new_empty(len(slots), embedding.shape[1])
    feed_kernel[(len(slots),)](
        memory.feed,
        slots,
        numbers,
        embedding,
        x,
        memory.seen,
        memory.counts,
        memory.counted,
        VOCAB=memory.seen.shape[1],
        DIM=embedding.shape[1],
        BLOCK=power_of_two(embedding.shape[1]),
    )
    return x


def best(memory: Memory, logits: Tensor, ints: Tensor, floats: Tensor) -> Tensor:
    """As `choosing.choose` where every row takes its most likely token."""
    rows, vocab = logits.shape
    parts = -(-vocab // BEST_BLOCK)
    peaks = logits.new_empty(rows, parts)
    tokens = ints.new_empty(rows, parts)
    chosen, fed = ints.new_empty(rows), ints.new_empty(rows)
    best_kernel[(rows, parts)](
        logits,
        ints[0],
        *floats[:3].unbind(),
        memory.seen,
        memory.counts,
        peaks,
        tokens,
        VOCAB=vocab,
        BLOCK=BEST_BLOCK,
    )
    best_of_parts_kernel[(rows,)](
        peaks, tokens, chosen, fed, NUM_PARTS=parts, BLOCK=power_of_two(parts), num_warps=1
    )
    memory.keep(ints[0], ints[1], fed)
    return chosen
