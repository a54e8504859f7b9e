"""How the next token of each row of a pass is chosen: as numbers by row, and as tensors for the
samplers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.chat.request import NO_CONTROLS, Controls, Sampling
from predictors.chat.sampling import noise_key

Number = TypeVar("Number", np.int64, np.float32)

NUM_PLAIN = 5
"""The first rows of `ChoiceInts` and `ChoiceFloats`: those that a choice without controls needs."""
NEUTRAL = (1.0, 0.0, 0.0, 1.0, 1.0, -math.inf)
"""Floats of a choice that change no logit."""


class ChoiceInts:
    """The rows of `Choices.ints`."""

    SLOT, NUMBER, TOP_K, KEY, IS_GREEDY, IS_BIASED, IS_EARLY = range(7)


class ChoiceFloats:
    """The rows of `Choices.floats`."""

    REPETITION, PRESENCE, FREQUENCY, TEMPERATURE, TOP_P, LOG_MIN_P = range(6)


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """How the next token of `slot`'s sequence is chosen, number `position` of its answer."""

    slot: int
    sampling: Sampling
    seed: int
    position: int
    controls: Controls = NO_CONTROLS


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of n rows of a pass.

    `ints` (7, n) int64 has the rows of `ChoiceInts`: slot, number of the token in the answer, top_k
    (the vocabulary's size when off), key of `noise_key` (0 if greedy), and whether the choice is
    greedy, has a bias, and may not end the answer yet. `floats` (6, n) fp32 has the rows of
    `ChoiceFloats`. `scored` are the rows that ask for logprobs.
    """

    ints: NDArray[np.int64]
    floats: NDArray[np.float32]
    scored: Sequence[int] = ()

    @classmethod
    def of(cls, choices: Sequence[TokenChoice], vocab: int) -> Choices:
        ints = [_ints(choice, vocab) for choice in choices]
        floats = [floats_of(choice.sampling) for choice in choices]
        scored = [i for i, each in enumerate(choices) if each.controls.logprobs is not None]
        return cls(
            np.array(ints, np.int64).reshape(-1, 7).T,
            np.array(floats, np.float32).reshape(-1, 6).T,
            scored,
        )

    def __len__(self) -> int:
        return int(self.ints.shape[1])

    def sampler(self, vocab: int) -> str:
        """The cheapest of `SAMPLERS` that serves all rows."""
        is_greedy = self.ints[ChoiceInts.IS_GREEDY].astype(bool)
        if is_greedy.all():
            return "greedy"
        has_no_top_k = self.ints[ChoiceInts.TOP_K] >= vocab
        is_open = has_no_top_k & (self.floats[ChoiceFloats.TOP_P] >= 1.0)
        return "drawn" if (is_open | is_greedy).all() else "sampled"

    @property
    def is_controlled(self) -> bool:
        """The controls of a row, or its min_p, can change its token."""
        is_drawn = self.ints[ChoiceInts.IS_GREEDY] == 0
        log_min_p = np.where(is_drawn, self.floats[ChoiceFloats.LOG_MIN_P], -np.inf)
        flags = self.ints[ChoiceInts.IS_BIASED : ChoiceInts.IS_EARLY + 1]
        return bool(flags.any() or (log_min_p > -np.inf).any())

    def take(self, rows: Sequence[int]) -> Choices:
        """The choices of these rows, in this order. None of them may ask for logprobs."""
        return Choices(self.ints[:, rows], self.floats[:, rows])


def top_k_of(sampling: Sampling, vocab: int) -> int:
    return min(sampling.top_k, vocab) if sampling.top_k > 0 else vocab


def floats_of(sampling: Sampling) -> tuple[float, float, float, float, float, float]:
    """A column of `Choices.floats`."""
    return (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        1.0 if sampling.is_greedy else sampling.temperature,
        sampling.top_p,
        math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf,
    )


def _ints(choice: TokenChoice, vocab: int) -> tuple[int, int, int, int, int, int, int]:
    sampling, controls, position = choice.sampling, choice.controls, choice.position
    key = 0 if sampling.is_greedy else noise_key(choice.seed, position)
    has_bias, is_early = bool(controls.logit_bias), position < controls.min_tokens
    top_k, is_greedy = top_k_of(sampling, vocab), sampling.is_greedy
    return choice.slot, position, top_k, key, int(is_greedy), int(has_bias), int(is_early)


# -- to a sampler's tensors ------------------------------------------------------------------------
def pack_choices(
    choices: Choices, width: int, vocab: int, padding_slot: int
) -> tuple[Tensor, Tensor]:
    """ints (5, width) int64: slot, number, top_k, key, greedy; floats (5, width) fp32: penalties
    (repetition, presence, frequency), temperature, top_p. On the host; padding rows are greedy."""
    return (
        widened(choices.ints[:NUM_PLAIN], width, choice_padding(vocab, padding_slot)),
        widened(choices.floats[:NUM_PLAIN], width, NEUTRAL[:NUM_PLAIN]),
    )


def choice_padding(vocab: int, slot: int) -> tuple[int, int, int, int, int]:
    """A column of the integers of `pack_choices` for a row that no sequence has."""
    return slot, 0, vocab, 0, 1


def pack_controlled(
    choices: Choices, masked: Mapping[int, int], width: int, vocab: int, padding_slot: int
) -> tuple[Tensor, Tensor]:
    """As `pack_choices`, with four more rows of integers: row of its mask, is_masked, is_biased,
    is_withheld; and one more of floats, the logarithm of min_p. `masked` is `TokenMasks.rows`: a
    mask leaves out end tokens that may not come yet, so a masked row is not withheld."""
    ints = np.zeros((NUM_PLAIN + 4, len(choices)), np.int64)
    ints[:NUM_PLAIN] = choices.ints[:NUM_PLAIN]
    rows = list(masked)
    ints[NUM_PLAIN, rows] = list(masked.values())
    ints[NUM_PLAIN + 1, rows] = 1
    ints[NUM_PLAIN + 2] = choices.ints[ChoiceInts.IS_BIASED]
    ints[NUM_PLAIN + 3] = choices.ints[ChoiceInts.IS_EARLY] & (1 - ints[NUM_PLAIN + 1])
    padding = (*choice_padding(vocab, padding_slot), 0, 0, 0, 0)
    return widened(ints, width, padding), widened(choices.floats, width, NEUTRAL)


def widened(
    columns: NDArray[np.int64] | NDArray[np.float32], width: int, padding: Sequence[float]
) -> Tensor:
    """A new tensor (k, width) that begins with `columns` (k, n); the others hold `padding` (k,)."""
    wide = np.empty((len(columns), width), columns.dtype)
    put_widened(wide, columns, padding)
    return torch.from_numpy(wide)


def put_widened(wide: NDArray[Number], columns: NDArray[Number], padding: Sequence[float]) -> None:
    """Write `columns` (k, n) to the first columns of `wide` (k, width), `padding` (k,) to the
    others."""
    count = columns.shape[1]
    wide[:, :count] = columns
    if count < wide.shape[1]:
        wide[:, count:] = np.array(padding, wide.dtype)[:, None]
