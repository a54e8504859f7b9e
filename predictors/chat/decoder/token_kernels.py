"""Triton kernels at both ends of a decode step: embed the newest token, change the logits of rows
with controls, choose the next token.

Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def feed_kernel(
    feed,
    slots,
    indices,
    embedding,
    x,
    seen,
    counts,
    counted,
    VOCAB: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each row's newest token (answer token number `indices`): count it, look its embedding up.

    `counted` (slots,) says how many answer tokens are in `counts`, so a repeated step counts none
    twice. feed (slots, 2) holds the newest tokens by parity of their number.
    """
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    index = tl.load(indices + row)
    token = tl.load(feed + slot * 2 + index % 2)
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    value = tl.load(embedding + token * DIM + columns, mask, other=0.0)
    tl.store(x + row * DIM + columns, value, mask)
    cell = slot * VOCAB + token
    tl.store(seen + cell, tl.full((), 1, seen.dtype.element_ty))
    before = tl.load(counted + slot)
    count = tl.load(counts + cell)
    tl.store(counts + cell, tl.where(before == index, count + 1.0, count))
    tl.store(counted + slot, index + 1)


@triton.jit
def change_kernel(
    logits,
    slots,
    masks,
    is_masked,
    is_biased,
    is_withheld,
    biased,
    bias,
    withheld,
    words,
    out,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    NUM_BIASED: tl.constexpr,
    BIASED_BLOCK: tl.constexpr,
    NUM_WITHHELD: tl.constexpr,
    WITHHELD_BLOCK: tl.constexpr,
):
    """A part of the vocabulary of `logit_changes.change_logits`, into out (rows, VOCAB).

    `slots`, `masks` (row of `words`) and the flags are (rows,) int64; `biased`, `bias` and
    `withheld` are those of all slots. A token that stands twice is written twice with the same
    value.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    start = row.to(tl.int64) * VOCAB
    masked = tl.load(is_masked + row) != 0
    words_at = words + tl.load(masks + row) * NUM_WORDS
    value = tl.load(logits + start + token, inside, other=0.0)
    word = tl.load(words_at + token // 32, inside & masked, other=-1)
    value = tl.where(((word >> (token % 32)) & 1) != 0, value, -float("inf"))
    tl.store(out + start + token, value, inside)
    slot = tl.load(slots + row)
    tl.debug_barrier()
    if tl.load(is_biased + row) != 0:
        column = tl.arange(0, BIASED_BLOCK)
        raised = tl.load(biased + slot * NUM_BIASED + column, column < NUM_BIASED, other=VOCAB)
        here = (raised // BLOCK == part) & (raised < VOCAB)
        more = tl.load(bias + slot * NUM_BIASED + column, here, other=0.0)
        sums = tl.load(logits + start + raised, here, other=0.0) + more
        bits = tl.load(words_at + raised // 32, here & masked, other=-1)
        sums = tl.where(((bits >> (raised % 32).to(tl.int32)) & 1) != 0, sums, -float("inf"))
        tl.store(out + start + raised, sums, here)
    tl.debug_barrier()
    if tl.load(is_withheld + row) != 0:
        place = tl.arange(0, WITHHELD_BLOCK)
        barred = tl.load(withheld + slot * NUM_WITHHELD + place, place < NUM_WITHHELD, other=VOCAB)
        none = tl.full((WITHHELD_BLOCK,), -float("inf"), tl.float32)
        tl.store(out + start + barred, none, (barred // BLOCK == part) & (barred < VOCAB))


@triton.jit
def best_kernel(
    logits,
    raw,
    slots,
    repetition,
    presence,
    frequency,
    seen,
    counts,
    peaks,
    tokens,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_CHANGED: tl.constexpr,
):
    """The best penalised logit of a part of the vocabulary, and whose it is: see
    `sampling.penalised`. peaks, tokens (rows, parts); of equals the first token wins. A part with
    a logit that is not finite wins over all others, with token -1 (`sampling.NOT_FINITE`): of `raw`
    where `logits` were changed."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    value = tl.load(logits + row.to(tl.int64) * VOCAB + token, inside, other=0.0)
    made = value
    if IS_CHANGED:
        made = tl.load(raw + row.to(tl.int64) * VOCAB + token, inside, other=0.0)
    is_broken = tl.max(tl.where(tl.abs(made) < float("inf"), 0, 1), axis=0)  # NaN is not less
    cell = tl.load(slots + row) * VOCAB + token
    known = tl.load(seen + cell, inside, other=0).to(tl.int1)
    count = tl.load(counts + cell, inside, other=0.0)
    by = tl.load(repetition + row)
    value = tl.where(known, tl.where(value < 0, value * by, tl.div_rn(value, by)), value)
    value = value - count * tl.load(frequency + row)
    value = tl.where(count > 0, value - tl.load(presence + row), value)
    value = tl.where(inside, value, -float("inf"))
    best = tl.argmax(value, axis=0)
    peak = tl.where(is_broken > 0, float("inf"), tl.max(value, axis=0))
    chosen = tl.where(is_broken > 0, -1, part * BLOCK + best).to(tl.int64)
    tl.store(peaks + row * tl.num_programs(1) + part, peak)
    tl.store(tokens + row * tl.num_programs(1) + part, chosen)


@triton.jit
def best_of_parts_kernel(peaks, tokens, out, fed, NUM_PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The best over all parts: out (rows,); in fed (rows,) the same, but for 0 instead of -1, so
    that it can be looked up."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK)
    inside = part < NUM_PARTS
    peak = tl.load(peaks + row * NUM_PARTS + part, inside, other=-float("inf"))
    chosen = tl.load(tokens + row * NUM_PARTS + tl.argmax(peak, axis=0))
    tl.store(out + row, chosen)
    tl.store(fed + row, tl.maximum(chosen, 0))
