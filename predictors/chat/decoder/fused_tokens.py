"""Both ends of a decode step on a GPU: the newest tokens in, the next tokens out. Each part is one
or two kernels over the state of all slots.
"""

from __future__ import annotations

from torch import Tensor

from predictors.chat.choices import NUM_PLAIN
from predictors.chat.decoder.control_state import ControlState
from predictors.chat.decoder.fused_linears import power_of_two
from predictors.chat.decoder.state import SlotState
from predictors.chat.decoder.token_kernels import (
    best_kernel,
    best_of_parts_kernel,
    change_kernel,
    feed_kernel,
)
from predictors.chat.sampling import SAMPLERS, mark_not_finite

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


def choose_greedy(
    state: SlotState, logits: Tensor, ints: Tensor, floats: Tensor, raw: Tensor | None = None
) -> Tensor:
    """As `SlotState.choose_tokens` where every row takes its most likely token. `raw` are the
    logits as the model made them, where they were changed."""
    rows, vocab = logits.shape
    parts = -(-vocab // BEST_BLOCK)
    peaks = logits.new_empty(rows, parts)
    tokens = ints.new_empty(rows, parts)
    chosen, fed = ints.new_empty(rows), ints.new_empty(rows)
    best_kernel[(rows, parts)](
        logits,
        logits if raw is None else raw,
        ints[0],
        *floats[:3].unbind(),
        state.seen,
        state.counts,
        peaks,
        tokens,
        VOCAB=vocab,
        BLOCK=BEST_BLOCK,
        IS_CHANGED=raw is not None,
    )
    best_of_parts_kernel[(rows,)](
        peaks, tokens, chosen, fed, NUM_PARTS=parts, BLOCK=power_of_two(parts), num_warps=1
    )
    state.store_tokens(ints[0], ints[1], fed)
    return chosen


def change_fused(controls: ControlState, logits: Tensor, ints: Tensor) -> Tensor:
    """`change_logits` for the integers of `pack_controlled` and the masks in `controls.words`."""
    rows, vocab = logits.shape
    masks, is_masked, is_biased, is_withheld = ints[NUM_PLAIN:].unbind()
    biased, withheld = controls.biased, controls.withheld
    changed = logits.new_empty(rows, vocab)
    change_kernel[(rows, -(-vocab // BEST_BLOCK))](
        logits,
        ints[0],
        masks,
        is_masked,
        is_biased,
        is_withheld,
        biased,
        controls.bias,
        withheld,
        controls.words,
        changed,
        VOCAB=vocab,
        BLOCK=BEST_BLOCK,
        NUM_WORDS=controls.words.shape[1],
        NUM_BIASED=biased.shape[1],
        BIASED_BLOCK=power_of_two(biased.shape[1]),
        NUM_WITHHELD=withheld.shape[1],
        WITHHELD_BLOCK=power_of_two(withheld.shape[1]),
    )
    return changed


def choose_controlled(
    controls: ControlState, sampler: str, logits: Tensor, ints: Tensor, floats: Tensor
) -> Tensor:
    """As `ControlState.choose_tokens` with the masks in `controls.words`; `sampler` is a name of
    `SAMPLERS`."""
    state, changed = controls.state, change_fused(controls, logits, ints)
    if sampler == "greedy":
        return choose_greedy(state, changed, ints, floats, raw=logits)
    penalties, draw = controls.sampling_of(ints, floats)
    tokens = SAMPLERS[sampler](changed, penalties, draw)
    state.store_tokens(ints[0], ints[1], tokens)
    return mark_not_finite(tokens, logits)
