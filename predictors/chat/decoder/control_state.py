"""The controls of each slot on the device: biased tokens, and those that end an answer.

They are written once per answer, so that a step copies only flags and the masks of grammars. A slot
whose sequence has none of them keeps what an earlier one left: its rows' flags are off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from predictors.chat.choices import NUM_PLAIN
from predictors.chat.constraints import WORD_BITS
from predictors.chat.decoder.state import SlotState
from predictors.chat.limits import MOST_BIASED, MOST_STOP_TOKENS
from predictors.chat.logit_changes import (
    ControlledSampler,
    LogitChanges,
    num_words,
)
from predictors.chat.request import Controls
from predictors.chat.sampling import Draw, Penalties, mark_not_finite

T = TypeVar("T")


class ControlState:
    """Beside `state`, for passes of at most `rows` choices. `end_tokens` end every answer. Engine
    thread only.

    Of each slot: `biased` (slots, n) int64 and `bias` (slots, n) fp32, `withheld` (slots, m) int64;
    a list is filled up by its first token. `words` (rows, words) int32 takes the masks of a pass.
    """

    def __init__(self, state: SlotState, rows: int, end_tokens: Collection[int]) -> None:
        slots, device = len(state.tables), state.tables.device
        vocab = state.seen.shape[1]
        self.state = state
        self._ends = tuple(sorted(token for token in end_tokens if token < vocab))
        self.biased = torch.zeros(slots, MOST_BIASED, dtype=torch.int64, device=device)
        self.bias = torch.zeros(slots, MOST_BIASED, dtype=torch.float32, device=device)
        ends = max(1, MOST_STOP_TOKENS + len(self._ends))
        self.withheld = torch.zeros(slots, ends, dtype=torch.int64, device=device)
        self._bits = torch.arange(WORD_BITS, dtype=torch.int32, device=device)
        self.words = torch.zeros(rows, num_words(vocab), dtype=torch.int32, device=device)

    def reset(self, slot: int, controls: Controls, move: Callable[[Tensor], Tensor]) -> None:
        """Make `slot` ready for an answer with these; `move` copies to the device. May be
        repeated."""
        if controls.logit_bias:
            tokens, values = zip(*_filled(controls.logit_bias, MOST_BIASED), strict=True)
            self.biased[slot].copy_(move(torch.tensor(tokens)))
            self.bias[slot].copy_(move(torch.tensor(values, dtype=torch.float32)))
        ends = (*self._ends, *sorted(controls.stop_token_ids))
        if controls.min_tokens and ends:
            filled = _filled(ends, self.withheld.shape[1])
            self.withheld[slot].copy_(move(torch.tensor(filled)))

    def choose_tokens(
        self,
        sampler: ControlledSampler,
        logits: Tensor,
        ints: Tensor,
        floats: Tensor,
        words: Tensor,
    ) -> Tensor:
        """As `SlotState.choose_tokens`, for what `pack_controlled` gives and the masks `words`."""
        penalties, draw = self.sampling_of(ints, floats)
        tokens = sampler(logits, penalties, draw, self.changes_of(ints, words))
        self.state.store_tokens(ints[0], ints[1], tokens)
        return mark_not_finite(tokens, logits)

    def sampling_of(self, ints: Tensor, floats: Tensor) -> tuple[Penalties, Draw]:
        """As `SlotState.sampling_of`, with min_p."""
        rows = ints[:NUM_PLAIN].unbind()
        penalties, draw = self.state.sampling_of(rows, floats[:NUM_PLAIN])
        return penalties, replace(draw, least=floats[NUM_PLAIN][:, None])

    def changes_of(self, ints: Tensor, words: Tensor) -> LogitChanges:
        """The changes of rows with these integers, under the masks `words`."""
        mask, *flags = ints[NUM_PLAIN:].unbind()
        is_masked, is_biased, is_withheld = (flag.bool()[:, None] for flag in flags)
        slots = ints[0]
        bias = self.bias.index_select(0, slots)
        return LogitChanges(
            biased=self.biased.index_select(0, slots),
            bias=bias.masked_fill(~is_biased, 0.0),
            withheld=self.withheld.index_select(0, slots),
            is_withheld=is_withheld,
            words=words.index_select(0, mask),
            is_masked=is_masked,
            bits=self._bits,
        )


def _filled(items: Collection[T], size: int) -> list[T]:
    """The items, then the first of them, `size` in all."""
    found = list(items)
    return found + found[:1] * (size - len(found))
