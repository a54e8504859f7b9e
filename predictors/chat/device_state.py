"""What the device remembers of each sequence: its pages, its newest tokens, what its penalties
count. Knows slots, not callers. Engine thread only.

Tokens stay on the device from step to step, so that a step can be launched before the one before it
was read. Everything here may be done twice with the same result, because a step that failed is
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from predictors.chat.decoder.paged import SCRATCH_PAGE
from predictors.chat.kv_cache import Limits
from predictors.chat.sampling import Penalties


class Slots:
    """State of `limits.slots` sequences, and of one more, `nobody`, whom padding rows belong to.

    `tables` (slots, pages) int64: pages in order. `feed` (slots, 2) int64: the two newest tokens of
    the answer, token number i at i % 2. `seen` (slots, vocab) bool: tokens of prompt and answer.
    `counts` (slots, vocab) fp32: how often each came in the answer. `counted` (slots,) int64: how
    many tokens of the answer are in both. `vocabulary` (1, vocab) int64 counts from 0.
    """

    def __init__(self, limits: Limits, vocab: int, device: torch.device) -> None:
        place = partial(torch.zeros, device=device)
        self.nobody = limits.slots
        everybody = limits.slots + 1
        self.tables = place((everybody, limits.pages_per_slot), dtype=torch.int64)
        self.feed = place((everybody, 2), dtype=torch.int64)
        self.seen = place((everybody, vocab), dtype=torch.bool)
        self.counts = place((everybody, vocab), dtype=torch.float32)
        self.counted = place((everybody,), dtype=torch.int64)
        self.vocabulary = torch.arange(vocab, device=device)[None]

    def begin(
        self, slot: int, pages: Sequence[int], prompt: Tensor, move: Callable[[Tensor], Tensor]
    ) -> None:
        """Make `slot` ready for a prompt (n,) int64 on the host; `move` brings it to the device."""
        table = torch.full((self.tables.shape[1],), SCRATCH_PAGE)
        table[: len(pages)] = torch.tensor(pages)
        self.tables[slot].copy_(move(table))
        self.seen[slot].zero_().index_fill_(0, move(prompt), True)
        self.counts[slot].zero_()
        self.counted[slot].zero_()

    def fed(self, slots: Tensor, indices: Tensor) -> Tensor:
        """Tokens (rows,) number `indices` of the answers in `slots`, both (rows,) int64; from now
        on they are counted. `feed_kernel` is the same in one pass."""
        tokens = self.feed[slots, indices % 2]
        self.seen[slots, tokens] = True
        is_new = (self.counted[slots] == indices).to(torch.float32)
        self.counts.index_put_((slots, tokens), is_new, accumulate=True)
        self.counted[slots] = indices + 1
        return tokens

    def keep(self, slots: Tensor, numbers: Tensor, tokens: Tensor) -> None:
        """Remember the chosen `tokens` (rows,), number `numbers` of their answers."""
        self.feed[slots, numbers % 2] = tokens

    def penalties(self, slots: Tensor, values: Tensor) -> Penalties:
        """Of rows in `slots` (rows,); `values` (3, rows): repetition, presence, frequency."""
        seen, counts = (x.index_select(0, slots) for x in (self.seen, self.counts))
        repetition, presence, frequency = values[..., None].unbind()
        return Penalties(repetition, presence, frequency, seen, counts)
