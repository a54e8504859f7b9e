"""The rows of decode steps, read from a table of slots: a step's numbers are made by numpy for all
rows together, since a row made by itself costs the host microseconds in each step.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from predictors.chat.choices import Choices, floats_of, top_k_of
from predictors.chat.rows import DecodeRows
from predictors.chat.sampling import mix_keys, mixed_seed
from predictors.chat.sequence import Sequence

LENGTH, POSITION, TOP_K, GREEDY, BIASED, MIN_TOKENS, SCORED = range(7)
_slot, _launched = attrgetter("slot"), attrgetter("launched")
_adapters = attrgetter("language_adapters")


class SlotRows:
    """Numbers of each slot's sequence that stay the same while it decodes. Engine thread only."""

    def __init__(self, slots: int, vocab: int) -> None:
        self._vocab = vocab
        self._ints = np.zeros((7, slots), np.int64)
        self._floats = np.zeros((6, slots), np.float32)
        self._seeds = np.zeros(slots, np.uint64)

    def put(self, sequence: Sequence) -> None:
        """`sequence` has its slot. May be repeated."""
        slot, work = sequence.slot, sequence.work
        sampling, controls = work.sampling, work.controls
        self._ints[:, slot] = (
            sequence.total,
            work.next_position,
            top_k_of(sampling, self._vocab),
            sampling.is_greedy,
            bool(controls.logit_bias),
            controls.min_tokens,
            controls.logprobs is not None,
        )
        self._floats[:, slot] = floats_of(sampling)
        self._seeds[slot] = mixed_seed(work.seed)

    def rows(self, group: Many[Sequence]) -> DecodeRows:
        """A row for each of these sequences: its newest token is not in the cache yet."""
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
        """Of tokens `numbers` of the sequences in `slots`, both (n,); `own` (7, n) are theirs."""
        ints = np.empty((7, len(slots)), np.int64)
        ints[0], ints[1], ints[2] = slots, numbers, own[TOP_K]
        is_greedy = ints[4] = own[GREEDY]
        ints[3] = 0 if is_greedy.all() else mix_keys(self._seeds[slots], numbers) * (1 - is_greedy)
        ints[5], ints[6] = own[BIASED], numbers < own[MIN_TOKENS]
        scored = np.flatnonzero(own[SCORED]).tolist()
        return Choices(ints, self._floats[:, slots], scored)
