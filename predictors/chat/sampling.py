"""Logits -> tokens, row by row. Knows no device, no sequence and no place where values come from.

Order as in transformers and vLLM: penalties, temperature, top_k, top_p, draw. The draw is a race of
exponentials (argmax of logits plus Gumbel noise) whose noise is a hash of (seed, position, token):
the same step gives the same token however often it is replayed, on whatever row and beside
whomever.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele et al. 2014): increment and the two multipliers
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
WORD = 2**64
NOT_FINITE = -1
"""In the place of a token: no id, so that it can't be taken for one."""
NOISE_BITS = 23  # so that (n + 1/2) / 2^23 is exact in fp32 and never 0 or 1


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of each row: penalties (rows, 1) fp32, `seen` (rows, vocab) bool, `counts` (rows, vocab)
    fp32.

    `seen` marks tokens of prompt and answer, `counts` how often a token came in the answer.
    """

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seen: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """Of each row, all (rows, 1): `temperature`, `top_p` fp32; `top_k`, `key` int64; `greedy` bool.

    `top_k` is the vocabulary's size when off. `key` comes from `noise_key`. `tokens` (1, vocab)
    int64 counts from 0; only `drawn` reads it.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    key: Tensor
    greedy: Tensor
    tokens: Tensor | None = None


def noise_key(seed: int, position: int) -> int:
    """64 bits, as a signed int, for the token at `position` of a sequence with `seed`."""
    word = _mix_int(_mix_int(seed + GOLDEN) + position * GOLDEN)
    return word - WORD if word >= WORD // 2 else word


def _mix_int(word: int) -> int:
    word %= WORD
    word = (word ^ (word >> 30)) * MIX1 % WORD
    word = (word ^ (word >> 27)) * MIX2 % WORD
    return word ^ (word >> 31)


def penalised(logits: Tensor, penalties: Penalties) -> Tensor:
    """Logits (rows, vocab) fp32 with all three penalties; neutral ones change no bit."""
    scaled = torch.where(logits < 0, logits * penalties.repetition, logits / penalties.repetition)
    logits = torch.where(penalties.seen, scaled, logits)
    logits = logits - penalties.counts * penalties.frequency
    return logits - (penalties.counts > 0).to(logits.dtype) * penalties.presence


def checked(tokens: Tensor, logits: Tensor) -> Tensor:
    """The chosen `tokens` (rows,) int64, `NOT_FINITE` for rows of `logits` (rows, vocab) that hold
    NaN or infinities: whatever was chosen there means nothing."""
    total = logits.sum(-1)  # not finite if anything in its row is not
    return tokens.masked_fill((total - total) != 0, NOT_FINITE)


def greedy(logits: Tensor, penalties: Penalties) -> Tensor:
    """The most likely token (rows,) int64 after penalties."""
    return penalised(logits, penalties).argmax(-1)


def sampled(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    """A token (rows,) int64 per row: drawn, or the most likely one where `draw.greedy`."""
    logits = penalised(logits, penalties)
    ranked, tokens = filtered(logits / draw.temperature, draw)
    raced = ranked + gumbel(draw.key, tokens)
    drawn = tokens.gather(1, raced.argmax(-1, keepdim=True))
    return torch.where(draw.greedy, logits.argmax(-1, keepdim=True), drawn)[:, 0]


def drawn(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    """As `sampled` where no row has a top_k or top_p: nothing needs to be ranked."""
    assert draw.tokens is not None  # given, because Inductor's C++ can't take an `arange` here
    logits = penalised(logits, penalties)
    raced = logits / draw.temperature + gumbel(draw.key, draw.tokens)
    return torch.where(draw.greedy, logits, raced).argmax(-1)


def filtered(logits: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Logits in descending order, -inf outside top_k and top_p, and whose they are; both (rows,
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
