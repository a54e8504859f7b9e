"""Makes the rows of decode steps from a table of slots. The numbers of all rows are made together,
by numpy: one by one they would cost the host microseconds for each row of each step.
"""

from __future__ import annotations

from collections import abc
from operator import attrgetter

import numpy as np

from predictors.chat.choices import ChoiceInts, Choices, floats_of, top_k_of
from predictors.chat.rows import DecodeRows
from predictors.chat.sampling import mix_keys, mixed_seed
from predictors.chat.sequence import Sequence

_slot, _launched = attrgetter("slot"), attrgetter("num_launched")
_adapters = attrgetter("language_adapters")

NUM_INTS = 12
CHOICE, STEP, COUNTED, SCORED = slice(7), slice(7, 11), slice(8, 11), 11
"""Rows of the table's integers: those of `ChoiceInts`, with `min_tokens` in the place of is_early;
those of `DecodeRows.ints`, of which the last three count the answer's tokens; is_scored."""


class SlotRows:
    """A table of the numbers that stay the same while the sequence of a slot decodes. Engine thread
    only."""

    def __init__(self, slots: int, vocab: int) -> None:
        self._vocab = vocab
        self._ints = np.zeros((NUM_INTS, slots), np.int64)
        self._floats = np.zeros((6, slots), np.float32)
        self._seeds = np.zeros(slots, np.uint64)

    def put(self, sequence: Sequence) -> None:
        """Write the numbers of `sequence` to its slot. May be repeated."""
        slot, work = sequence.slot, sequence.work
        sampling, controls = work.sampling, work.controls
        top_k = top_k_of(sampling, self._vocab)
        has_bias, is_scored = bool(controls.logit_bias), controls.logprobs is not None
        # of an answer without tokens: each of `COUNTED` is one less than with the first
        step = slot, sequence.num_prompt_tokens - 1, work.next_position - 1, -1
        choice = slot, 0, top_k, 0, sampling.is_greedy, has_bias, controls.min_tokens
        self._ints[:, slot] = (*choice, *step, is_scored)
        self._floats[:, slot] = floats_of(sampling)
        self._seeds[slot] = mixed_seed(work.seed)

    def rows(self, group: abc.Sequence[Sequence]) -> DecodeRows:
        """A row for each sequence of `group`. Its newest token is not in the cache yet."""
        slots = np.fromiter(map(_slot, group), np.int64, len(group))
        numbers = np.fromiter(map(_launched, group), np.int64, len(group))
        ints = self._ints.take(slots, axis=1)
        ints[COUNTED] += numbers
        ints[ChoiceInts.NUMBER] = numbers
        ints[ChoiceInts.IS_EARLY] = numbers < ints[ChoiceInts.IS_EARLY]
        is_greedy = ints[ChoiceInts.IS_GREEDY]
        if not is_greedy.all():
            ints[ChoiceInts.KEY] = mix_keys(self._seeds[slots], numbers) * (1 - is_greedy)
        scored = np.flatnonzero(ints[SCORED]).tolist()
        choices = Choices(ints[CHOICE], self._floats.take(slots, axis=1), scored)
        adapters = list(map(_adapters, group)) if any(map(_adapters, group)) else ()
        return DecodeRows(ints[STEP], choices, adapters)
