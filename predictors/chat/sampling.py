"""Logits to tokens, row by row: three samplers, and the tensors they take.

Order as in transformers: penalties, temperature, top_k, top_p, min_p, draw. The draw is the argmax
of logits plus Gumbel noise, and the noise is a hash of (seed, position, token): a step gives the
same token however often it is repeated, on any row and beside any other sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.chat.request import Sampling

GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele et al. 2014): increment and the two multipliers
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
WORD = 2**64
NOT_FINITE = -1
"""Stands in place of the token of a row that is not finite; it is no token's id."""
NOISE_BITS = 23  # so that (n + 1/2) / 2^23 is exact in fp32 and never 0 or 1


@dataclass(frozen=True, slots=True)
class Penalties:
    """The penalties of each row, (rows, 1) fp32, and the tokens that they are for: `seen` (rows,
    vocab) bool marks those of prompt and answer; `counts` (rows, vocab) fp32 is how often each came
    in the answer."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seen: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """How each row draws, all (rows, 1): `temperature`, `top_p` fp32; `top_k`, `key` int64;
    `greedy` bool.

    `top_k` is the vocabulary's size when off. `key` comes from `noise_key`. `tokens` (1, vocab)
    int64 counts from 0; only `sample_all` reads it. `least` is the logarithm of min_p, -inf when
    off; None where no row has one.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    key: Tensor
    greedy: Tensor
    tokens: Tensor | None = None
    least: Tensor | None = None


def noise_key(seed: int, position: int) -> int:
    """64 bits, as a signed int, for the token at `position` of a sequence with `seed`."""
    return _signed(_mix_int(mixed_seed(seed) + position * GOLDEN))


def mixed_seed(seed: int) -> int:
    """The part of `noise_key` that all tokens of a sequence share: 64 bits."""
    return _mix_int(seed + GOLDEN)


def mix_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """`noise_key` of many rows (n,): `seeds` are of `mixed_seed`."""
    word = seeds + positions.astype(np.uint64) * np.uint64(GOLDEN)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(MIX1)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(MIX2)
    keys: NDArray[np.int64] = (word ^ (word >> np.uint64(31))).view(np.int64)
    return keys


def _mix_int(word: int) -> int:
    word %= WORD
    word = (word ^ (word >> 30)) * MIX1 % WORD
    word = (word ^ (word >> 27)) * MIX2 % WORD
    return word ^ (word >> 31)


def penalized(logits: Tensor, penalties: Penalties) -> Tensor:
    """Logits (rows, vocab) fp32 with all three penalties; neutral values change no bit."""
    scaled = torch.where(logits < 0, logits * penalties.repetition, logits / penalties.repetition)
    logits = torch.where(penalties.seen, scaled, logits)
    logits = logits - penalties.counts * penalties.frequency
    return logits - (penalties.counts > 0).to(logits.dtype) * penalties.presence


def mark_not_finite(tokens: Tensor, logits: Tensor) -> Tensor:
    """The chosen `tokens` (rows,) int64, but `NOT_FINITE` for rows of `logits` (rows, vocab) that
    hold NaN or infinities."""
    total = logits.sum(-1)  # not finite if anything in its row is not
    return tokens.masked_fill((total - total) != 0, NOT_FINITE)


def sample_greedy(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    """The most likely token (rows,) int64 after penalties."""
    return penalized(logits, penalties).argmax(-1)


def sample_filtered(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    """A token (rows,) int64 per row: drawn, or the most likely one where `draw.greedy`."""
    logits = penalized(logits, penalties)
    ranked, tokens = filter_top(logits / draw.temperature, draw)
    ranked = drop_unlikely(ranked, draw)
    raced = ranked + gumbel(draw.key, tokens)
    drawn = tokens.gather(1, raced.argmax(-1, keepdim=True))
    return torch.where(draw.greedy, logits.argmax(-1, keepdim=True), drawn)[:, 0]


def sample_all(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    """As `sample_filtered` where no row has a top_k or top_p: nothing needs to be sorted."""
    assert draw.tokens is not None  # given, because Inductor's C++ can't take an `arange` here
    logits = penalized(logits, penalties)
    raced = drop_unlikely(logits / draw.temperature, draw) + gumbel(draw.key, draw.tokens)
    return torch.where(draw.greedy, logits, raced).argmax(-1)


def filter_top(logits: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Logits in descending order, -inf outside top_k and top_p, and their tokens; both (rows,
    vocab).

    As transformers: top_k keeps ties with the k-th; top_p keeps a token while the mass before it is
    below top_p, so that at least one stays.
    """
    ranked, tokens = logits.sort(dim=-1, descending=True, stable=True)
    least = ranked.gather(1, draw.top_k - 1)
    ranked = ranked.masked_fill(ranked < least, -torch.inf)
    mass = ranked.softmax(-1)
    before = mass.cumsum(-1) - mass
    return ranked.masked_fill((before >= draw.top_p) & (draw.top_p < 1), -torch.inf), tokens


def drop_unlikely(logits: Tensor, draw: Draw) -> Tensor:
    """Logits (rows, vocab), -inf where a token has less than min_p of the likeliest one's
    probability, as transformers' `MinPLogitsWarper`."""
    if draw.least is None:
        return logits
    return logits.masked_fill(logits - logits.amax(-1, keepdim=True) < draw.least, -torch.inf)


def gumbel(key: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise (rows, vocab) fp32 of `tokens` (rows, vocab) under `key` (rows, 1), int64."""
    word = key + tokens * _signed(GOLDEN)  # int64 wraps around
    word = (word ^ _shift(word, 30)) * _signed(MIX1)
    word = (word ^ _shift(word, 27)) * _signed(MIX2)
    word = word ^ _shift(word, 31)
    uniform = (_shift(word, 64 - NOISE_BITS).to(torch.float32) + 0.5) * 2.0**-NOISE_BITS
    return -torch.log(-torch.log(uniform))


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical shift right; PyTorch's carries the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


# -- from requests to samplers ---------------------------------------------------------------------
Sampler = Callable[[Tensor, Penalties, Draw], Tensor]

SAMPLERS: Mapping[str, Sampler] = {
    "greedy": sample_greedy,
    "drawn": sample_all,
    "sampled": sample_filtered,
}
"""Samplers from the cheapest to the one that serves every request. Each sampler that can serve a
row gives it the same token; "sampled" sorts the vocabulary, which costs as much as a decode step of
one sequence."""
GREEDY = Sampling(temperature=0.0)
ONE_PER_SAMPLER = (GREEDY, Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2))
"""A request that each sampler is the cheapest for."""
