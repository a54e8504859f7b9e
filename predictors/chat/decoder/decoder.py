"""Qwen2.5-VL's text decoder over packed tokens and KV pages. Knows no request, no sampling and no
file.

One forward serves both uses: a decode step (one row per sequence) and a prefill pass (many rows of
one or more prompts); only shapes and `Operations` differ. Rows never mix except inside attention,
which keeps to a sequence's own pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from predictors.chat.decoder.layers import GatedMLP, RMSNorm
from predictors.chat.decoder.operations import Angles, Operations
from predictors.chat.decoder.rotary import text_table


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
    """The weights of grouped-query attention, with q, k and v in one matmul."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.widths = [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(shape.hidden, sum(self.widths), bias=True)
        self.out = nn.Linear(self.widths[0], shape.hidden, bias=False)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.norm1 = RMSNorm(shape.hidden, shape.eps)
        self.attention = Attention(shape)
        self.norm2 = RMSNorm(shape.hidden, shape.eps)
        self.mlp = GatedMLP(shape.hidden, shape.mlp, bias=False)

    def forward(self, x: Tensor, angles: Angles, cache: Tensor, ops: Operations) -> Tensor:
        qkv = ops.normed_linear(x, self.norm1, self.attention.qkv)
        mixed = ops.attend(qkv, angles, cache, self.attention.head_dim)
        x = ops.added_linear(x, mixed, self.attention.out)
        wide = ops.gated_linear(x, self.norm2, self.mlp.gate_up)
        return ops.added_linear(x, wide, self.mlp.down)


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

    def angles(self, positions: Tensor) -> Angles:
        """Rotary tables for `positions` (3, rows) int64."""
        return Angles(*text_table(positions, self.frequencies, self.axes, self.shape.rope_scale))

    def forward(
        self, x: Tensor, angles: Angles, caches: Sequence[Tensor], ops: Operations
    ) -> Tensor:
        """The stream (rows, hidden) after all blocks, for embeddings `x` (rows, hidden).

        `caches` are one per layer and are written in place, so running the same step twice gives
        the same result: it overwrites what it wrote.
        """
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, angles, cache, ops)
        return x

    def logits(self, stream: Tensor, ops: Operations) -> Tensor:
        """Logits (rows, vocab) fp32 of rows of the stream."""
        return ops.logits(stream, self.norm, self.head)
