"""Qwen2.5-VL's text decoder over packed tokens and KV pages. Knows no request, no sampling and no
file.

One forward serves both uses: a decode step (one row per sequence) and a prefill chunk (many rows of
one sequence); only the shapes differ. Rows never mix except inside `paged_attention`, which keeps
to a sequence's own pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from predictors.qwen_vl.modules.layers import GatedMLP, RMSNorm
from predictors.qwen_vl.modules.paged import paged_attention
from predictors.qwen_vl.modules.rotary import rotate, text_table


@dataclass(frozen=True, slots=True)
class TextShape:
    """Sizes of a decoder; `rope_sections` are frequencies per axis (time, height, width)."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    eps: float
    rope_sections: tuple[int, ...]
    rope_scale: float
    tied: bool
    max_positions: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


class Attention(nn.Module):
    """Grouped-query attention with q, k and v in one matmul."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.widths = [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(shape.hidden, sum(self.widths), bias=True)
        self.out = nn.Linear(self.widths[0], shape.hidden, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, where: Sequence[Tensor]
    ) -> Tensor:
        parts = self.qkv(x).split(self.widths, dim=-1)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)) for part in parts
        )  # (tokens, heads, head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        mixed: Tensor = self.out(paged_attention(q, k, v, cache, *where).flatten(1))
        return mixed


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.norm1 = RMSNorm(shape.hidden, shape.eps)
        self.attention = Attention(shape)
        self.norm2 = RMSNorm(shape.hidden, shape.eps)
        self.mlp = GatedMLP(shape.hidden, shape.mlp, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, where: Sequence[Tensor]
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), rope, cache, where)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, blocks, norm and head. `frequencies` (head_dim/2,) fp32 and `axes` (head_dim/2,)
    int64.
    """

    frequencies: Tensor
    axes: Tensor

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        half = shape.head_dim // 2
        self.register_buffer("frequencies", torch.zeros(half), persistent=False)
        self.register_buffer("axes", torch.zeros(half, dtype=torch.int64), persistent=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        caches: Sequence[Tensor],
        where: Sequence[Tensor],
    ) -> Tensor:
        """Normed hidden states (tokens, hidden) for embeddings `x` (tokens, hidden).

        `positions` (3, tokens) int64; `caches` one per layer; `where` is `places, pages, spans` of
        `paged_attention`. The caches are written in place, so running the same step twice gives the
        same result: it overwrites what it wrote.
        """
        rope = text_table(positions, self.frequencies, self.axes, self.shape.rope_scale)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rope, cache, where)
        out: Tensor = self.norm(x)
        return out

    def decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Sequence[Tensor],
        places: Tensor,
        pages: Tensor,
        spans: Tensor,
    ) -> Tensor:
        """Logits (rows, vocab) fp32 of one token (rows,) int64 per sequence; `positions` (rows,)
        for all axes.
        """
        hidden = self(
            self.embedding(tokens), positions.expand(3, -1), caches, (places, pages, spans)
        )
        return self.head(hidden).to(torch.float32)  # type: ignore[no-any-return]

    def prefill(
        self,
        embedded: Tensor,
        positions: Tensor,
        last: Tensor,
        caches: Sequence[Tensor],
        places: Tensor,
        pages: Tensor,
        spans: Tensor,
    ) -> Tensor:
        """Logits (1, vocab) fp32 after row `last` (1,) int64 of one chunk, embeddings (rows,
        hidden).
        """
        hidden = self(embedded, positions, caches, (places, pages, spans))
        return self.head(hidden.index_select(0, last)).to(torch.float32)  # type: ignore[no-any-return]
