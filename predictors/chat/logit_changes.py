"""Changes to the logits of rows that ask for them, before a token is chosen: logit_bias, tokens
that may not come yet (min_tokens), and the mask of a grammar.

Order as in vLLM: bias, then what may not come, then penalties and the rest of the sampler. Rows
without any of it keep all bits of their logits, and so their token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from predictors.chat.constraints import WORD_BITS
from predictors.chat.sampling import (
    Draw,
    Penalties,
    sample_all,
    sample_filtered,
    sample_greedy,
)


def num_words(vocab: int) -> int:
    """Words of a mask over the vocabulary."""
    return -(-vocab // WORD_BITS)


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """The changes of each row's logits.

    `bias` (rows, n) fp32 is added to the logits of the tokens `biased` (rows, n) int64; a token
    that is there twice has the same bias. The tokens `withheld` (rows, m) int64 may not come where
    `is_withheld` (rows, 1) bool is true. Where `is_masked` (rows, 1) bool is true, only tokens
    whose bit in `words` (rows, words) int32 is 1 may come. `bits` (32,) int32 counts from 0.
    """

    biased: Tensor
    bias: Tensor
    withheld: Tensor
    is_withheld: Tensor
    words: Tensor
    is_masked: Tensor
    bits: Tensor


def change_logits(logits: Tensor, changes: LogitChanges) -> Tensor:
    """Logits (rows, vocab) fp32 with all changes; a token that may not come has -inf."""
    raised = logits.gather(1, changes.biased) + changes.bias
    logits = logits.scatter(1, changes.biased, raised)
    kept = logits.gather(1, changes.withheld).masked_fill(changes.is_withheld, -torch.inf)
    logits = logits.scatter(1, changes.withheld, kept)
    bits = (changes.words[:, :, None] >> changes.bits) & 1
    may_come = bits.flatten(1)[:, : logits.shape[1]] != 0
    return logits.masked_fill(~may_come & changes.is_masked, -torch.inf)


# -- samplers --------------------------------------------------------------------------------------
ControlledSampler = Callable[[Tensor, Penalties, Draw, LogitChanges], Tensor]


def sample_controlled_greedy(
    logits: Tensor, penalties: Penalties, draw: Draw, changes: LogitChanges
) -> Tensor:
    """`sample_greedy` over changed logits."""
    return sample_greedy(change_logits(logits, changes), penalties, draw)


def sample_controlled_all(
    logits: Tensor, penalties: Penalties, draw: Draw, changes: LogitChanges
) -> Tensor:
    """`sample_all` over changed logits."""
    return sample_all(change_logits(logits, changes), penalties, draw)


def sample_controlled_filtered(
    logits: Tensor, penalties: Penalties, draw: Draw, changes: LogitChanges
) -> Tensor:
    """`sample_filtered` over changed logits."""
    return sample_filtered(change_logits(logits, changes), penalties, draw)


CONTROLLED: Mapping[str, ControlledSampler] = {
    "greedy": sample_controlled_greedy,
    "drawn": sample_controlled_all,
    "sampled": sample_controlled_filtered,
}
"""The samplers of `SAMPLERS` over changed logits, by the same names."""


# -- from requests to samplers ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TokenMasks:
    """The tokens that the constrained rows of a pass may take: masks `words` (n, words) int32 on
    the host, and `rows`, from the number of a choice to the row of its mask."""

    words: Tensor
    rows: Mapping[int, int] = field(default_factory=dict)


MaskSource = Callable[[], TokenMasks | None]
"""Makes the masks of a pass's rows; None if no row has one."""
