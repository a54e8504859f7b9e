"""Both ends of a decode step on a GPU: the newest tokens in, the most likely next tokens out. Each
is one or two kernels over the state of all slots.
"""

from __future__ import annotations

from torch import Tensor

from predictors.chat.decoder.fused_linears import power_of_two
from predictors.chat.decoder.state import SlotState
from predictors.chat.decoder.token_kernels import (
    best_kernel,
    best_of_parts_kernel,
    feed_kernel,
)

BEST_BLOCK = 2048


def embed_newest(state: SlotState, slots: Tensor, numbers: Tensor, embedding: Tensor) -> Tensor:
    """The embeddings (rows, hidden) of `SlotState.newest_tokens`, which are counted too."""
    x = embedding.new_empty(len(slots), embedding.shape[1])
    feed_kernel[(len(slots),)](
        state.feed,
        slots,
        numbers,
        embedding,
        x,
        state.seen,
        state.counts,
        state.counted,
        VOCAB=state.seen.shape[1],
        DIM=embedding.shape[1],
        BLOCK=power_of_two(embedding.shape[1]),
    )
    return x


def choose_greedy(state: SlotState, logits: Tensor, ints: Tensor, floats: Tensor) -> Tensor:
    """As `SlotState.choose_tokens` where every row takes its most likely token."""
    rows, vocab = logits.shape
    parts = -(-vocab // BEST_BLOCK)
    peaks = logits.new_empty(rows, parts)
    tokens = ints.new_empty(rows, parts)
    chosen, fed = ints.new_empty(rows), ints.new_empty(rows)
    best_kernel[(rows, parts)](
        logits,
        ints[0],
        *floats[:3].unbind(),
        state.seen,
        state.counts,
        peaks,
        tokens,
        VOCAB=vocab,
        BLOCK=BEST_BLOCK,
    )
    best_of_parts_kernel[(rows,)](
        peaks, tokens, chosen, fed, NUM_PARTS=parts, BLOCK=power_of_two(parts), num_warps=1
    )
    state.store_tokens(ints[0], ints[1], fed)
    return chosen
