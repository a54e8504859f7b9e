"""The state of each sequence on the device: its pages, its newest tokens, its penalty counts.

Tokens stay on the device from step to step, so that a step can be launched before the previous one
was read. Every operation may be repeated with the same result, because a failed step is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.chat.decoder.paged import SCRATCH_PAGE
from predictors.chat.sampling import Draw, Penalties, Sampler, mark_not_finite


@dataclass(frozen=True, slots=True)
class SlotReset:
    """Gives `slot` these `pages`, and makes it ready for `prompt` (n,) int64; without one all else
    of it stays."""

    slot: int
    pages: Sequence[int]
    prompt: NDArray[np.int64] | None = None


class SlotState:
    """State of `slots` sequences, and of one more slot, `padding`, to which padding rows belong.
    Engine thread only.

    `tables` (slots, pages) int64: pages in order. `feed` (slots, 2) int64: the two newest tokens of
    the answer, token number i at i % 2. `seen` (slots, vocab) bool: tokens of prompt and answer.
    `counts` (slots, vocab) fp32: how often each came in the answer. `counted` (slots,) int64: how
    many tokens of the answer are in both. `vocabulary` (1, vocab) int64 counts from 0.
    """

    def __init__(self, slots: int, pages_per_slot: int, vocab: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, device=device)
        self.padding = slots
        self.tables = zeros((slots + 1, pages_per_slot), dtype=torch.int64)
        self.feed = zeros((slots + 1, 2), dtype=torch.int64)
        self.seen = zeros((slots + 1, vocab), dtype=torch.bool)
        self.counts = zeros((slots + 1, vocab), dtype=torch.float32)
        self.counted = zeros((slots + 1,), dtype=torch.int64)
        self.vocabulary = torch.arange(vocab, device=device)[None]
        self._seen = torch.ones((), dtype=torch.bool, device=device)

    def reset(self, resets: Sequence[SlotReset], move: Callable[[Tensor], Tensor]) -> None:
        """Reset slots that all differ. `move` copies to the device, once for all of them. Launched
        work still reads what was there: all of this comes later on the same stream."""
        begun = [each for each in resets if each.prompt is not None]
        tables = np.full((len(resets), self.tables.shape[1]), SCRATCH_PAGE, np.int64)
        for row, each in enumerate(resets):
            tables[row, : len(each.pages)] = each.pages
        prompts = [each.prompt for each in begun if each.prompt is not None]
        new = np.array([each.slot for each in begun], np.int64)
        parts: tuple[NDArray[np.int64], ...] = (
            np.array([each.slot for each in resets], np.int64),
            tables.ravel(),
            new,
            np.repeat(new, [len(prompt) for prompt in prompts]),
            np.concatenate([np.empty(0, np.int64), *prompts]),
        )
        moved = move(torch.from_numpy(np.concatenate(parts)))
        slots, pages, new_slots, rows, tokens = moved.split([len(part) for part in parts])
        self.tables.index_copy_(0, slots, pages.view(tables.shape))
        if begun:
            self.seen.index_fill_(0, new_slots, False).index_put_((rows, tokens), self._seen)
            self.counts.index_fill_(0, new_slots, 0.0)
            self.counted.index_fill_(0, new_slots, 0)

    def newest_tokens(self, slots: Tensor, numbers: Tensor) -> Tensor:
        """Tokens (rows,) number `numbers` of the answers in `slots`, both (rows,) int64; counts
        them for the penalties. `feed_kernel` does the same in one pass."""
        tokens = self.feed[slots, numbers % 2]
        self.seen[slots, tokens] = True
        is_new = (self.counted[slots] == numbers).to(torch.float32)
        self.counts.index_put_((slots, tokens), is_new, accumulate=True)
        self.counted[slots] = numbers + 1
        return tokens

    def store_tokens(self, slots: Tensor, numbers: Tensor, tokens: Tensor) -> None:
        """Store the chosen `tokens` (rows,), number `numbers` of their answers."""
        self.feed[slots, numbers % 2] = tokens

    def choose_tokens(
        self, sampler: Sampler, logits: Tensor, ints: Tensor, floats: Tensor
    ) -> Tensor:
        """The next token (rows,) int64 for `logits` (rows, vocab) fp32, or `NOT_FINITE`; stores it.
        `ints` and `floats` are those of `pack_choices`."""
        rows = ints.unbind()
        tokens = sampler(logits, *self.sampling_of(rows, floats))
        # a real token in any case: the next step may be launched before this one is read
        self.store_tokens(rows[0], rows[1], tokens)
        return mark_not_finite(tokens, logits)

    def sampling_of(self, ints: Sequence[Tensor], floats: Tensor) -> tuple[Penalties, Draw]:
        """A sampler's arguments beside the logits; `ints` are the rows of those of `pack_choices`,
        `floats` its floats."""
        slots, _, top_k, key, is_greedy = ints
        temperature, top_p = floats[3:, :, None].unbind()
        greedy_rows = is_greedy.bool()[:, None]
        draw = Draw(temperature, top_p, top_k[:, None], key[:, None], greedy_rows, self.vocabulary)
        return self._penalties(slots, floats[:3]), draw

    def _penalties(self, slots: Tensor, values: Tensor) -> Penalties:
        """Penalties of the rows in `slots` (rows,). `values` (3, rows): repetition, presence,
        frequency."""
        seen, counts = (x.index_select(0, slots) for x in (self.seen, self.counts))
        repetition, presence, frequency = values[..., None].unbind()
        return Penalties(repetition, presence, frequency, seen, counts)
