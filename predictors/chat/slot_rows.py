"""Makes the rows of decode steps from a table of slots. The numbers of all rows are made together,
by numpy: one by one they would cost the host microseconds for each row of each step.
"""

from __future__ import annotations

from collections import abc
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from predictors.chat.choices import ChoiceInts, Choices, floats_of, top_k_of
from predictors.chat.rows import DecodeRows
from predictors.chat.sampling import mix_keys, mixed_seed
from predictors.chat.sequence import Sequence

# rows of the table's integers
LENGTH, POSITION, TOP_K, GREEDY, BIASED, MIN_TOKENS, SCORED = range(7)
_slot, _launched = attrgetter("slot"), attrgetter("num_launched")
_adapters = attrgetter("language_adapters")


class SlotRows:
    """A table of the numbers that stay the same while the sequence of a slot decodes. Engine thread
    only."""

    def __init__(self, slots: int, vocab: int) -> None:
        self._vocab = vocab
        self._ints = np.zeros((7, slots), np.int64)
        self._floats = np.zeros((6, slots), np.float32)
        self._seeds = np.zeros(slots, np.uint64)

    def put(self, sequence: Sequence) -> None:
        """Write the numbers of `sequence` to its slot. May be repeated."""
        slot, work = sequence.slot, sequence.work
        sampling, controls = work.sampling, work.controls
        self._ints[:, slot] = (
            sequence.num_prompt_tokens,
            work.next_position,
            top_k_of(sampling, self._vocab),
            sampling.is_greedy,
            bool(controls.logit_bias),
            controls.min_tokens,
            controls.logprobs is not None,
        )
        self._floats[:, slot] = floats_of(sampling)
        self._seeds[slot] = mixed_seed(work.seed)

    def rows(self, group: abc.Sequence[Sequence]) -> DecodeRows:
        """A row for each sequence of `group`. Its newest token is not in the cache yet."""
        slots = np.fromiter(map(_slot, group), np.int64, len(group))
        numbers = np.fromiter(map(_launched, group), np.int64, len(group))
        own, indices = self._ints[:, slots], numbers - 1
        ints = np.stack((slots, own[LENGTH] + indices, own[POSITION] + indices, indices))
        adapters = list(map(_adapters, group))
        choices = self._choices(slots, numbers, own)
        return DecodeRows(ints, choices, adapters if any(adapters) else ())

    def _choices(
        self, slots: NDArray[np.int64], numbers: NDArray[np.int64], own: NDArray[np.int64]
    ) -> Choices:
        """The choices of token `numbers` (n,) of the answers in `slots` (n,). `own` (7, n) are the
        table's integers of these slots."""
        ints = np.empty((7, len(slots)), np.int64)
        is_greedy = own[GREEDY]
        keys = 0 if is_greedy.all() else mix_keys(self._seeds[slots], numbers) * (1 - is_greedy)
        ints[ChoiceInts.SLOT] = slots
        ints[ChoiceInts.NUMBER] = numbers
        ints[ChoiceInts.TOP_K] = own[TOP_K]
        ints[ChoiceInts.KEY] = keys
        ints[ChoiceInts.IS_GREEDY] = is_greedy
        ints[ChoiceInts.IS_BIASED] = own[BIASED]
        ints[ChoiceInts.IS_EARLY] = numbers < own[MIN_TOKENS]
        scored = np.flatnonzero(own[SCORED]).tolist()
        return Choices(ints, self._floats[:, slots], scored)
