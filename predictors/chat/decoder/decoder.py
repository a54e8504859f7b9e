"""A decoder-only transformer over packed tokens and KV pages, with grouped-query attention, M-RoPE
and a gated MLP.

One forward serves both uses: a decode step (one row per sequence) and a prompt pass (many rows of
one or more prompts); only shapes and `Operations` differ. Rows mix inside attention only, which
reads a sequence's own pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from predictors.chat.decoder.layers import GatedMLP, RMSNorm
from predictors.chat.decoder.operations import (
    Angles,
    HeadNorms,
    Operations,
    Stream,
    values_of,
)
from predictors.chat.decoder.rotary import text_table


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes and options of a decoder, as a checkpoint's config gives them."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    frequencies: tuple[float, ...]
    """Rotary frequencies, head_dim / 2 of them, each a float32."""
    axes: tuple[int, ...]
    """The axis of each frequency: 0 time, 1 height, 2 width."""
    rope_scale: float
    """Multiplies cos and sin: 1 unless the context is stretched, as YaRN does."""
    tied: bool
    """The embedding is the head, too."""
    max_positions: int
    qkv_bias: bool = True
    qk_norm: bool = False
    """Each head of q and k goes through an RMS norm before it is rotated."""
    deepstack: int = 0
    """The first layers that add features of pictures to their output (arXiv 2406.04334)."""


class Attention(nn.Module):
    """The weights of grouped-query attention, with q, k and v in one matmul."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.widths = [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(shape.hidden, sum(self.widths), bias=shape.qkv_bias)
        self.out = nn.Linear(self.widths[0], shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.eps) if shape.qk_norm else None

    @property
    def head_norms(self) -> HeadNorms | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm, self.k_norm)


class Block(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.norm1 = RMSNorm(shape.hidden, shape.eps)
        self.attention = Attention(shape)
        self.norm2 = RMSNorm(shape.hidden, shape.eps)
        self.mlp = GatedMLP(shape.hidden, shape.mlp, bias=False)

    def forward(
        self, x: Stream, angles: Angles, cache: Tensor, ops: Operations, following: RMSNorm
    ) -> Stream:
        """`following` is the norm behind this block."""
        attention = self.attention
        qkv = ops.normed_linear(x, self.norm1, attention.qkv)
        mixed = ops.attend(qkv, angles, cache, attention.head_dim, attention.head_norms)
        x = ops.added_linear(x, mixed, attention.out, self.norm2)
        wide = ops.gated_linear(x, self.norm2, self.mlp.gate_up)
        return ops.added_linear(x, wide, self.mlp.down, following)


class Decoder(nn.Module):
    """Embedding, blocks, norm and head. `frequencies` (head_dim / 2,) fp32 and `axes`
    (head_dim / 2,) int64 are those of the shape."""

    frequencies: Tensor
    axes: Tensor

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", torch.tensor(shape.frequencies), persistent=False)
        self.register_buffer("axes", torch.tensor(shape.axes), persistent=False)

    @property
    def first(self) -> Block:
        """The first block."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block

    def angles(self, positions: Tensor) -> Angles:
        """Rotary tables for `positions` (3, rows) int64."""
        return Angles(*text_table(positions, self.frequencies, self.axes, self.shape.rope_scale))

    def forward(
        self,
        x: Stream,
        angles: Angles,
        caches: Sequence[Tensor],
        ops: Operations,
        deepstack: Tensor | None = None,
    ) -> Stream:
        """The stream (rows, hidden) after all blocks, for embeddings `x` (rows, hidden).

        `caches` are one per layer and are written in place, so running the same step twice gives
        the same result: it overwrites what it wrote. Level i of `deepstack` (levels, rows, hidden)
        is added after layer i; it is zero for rows that are no picture's.
        """
        added = () if deepstack is None else deepstack.unbind()
        norms = [*(block.norm1 for block in self.blocks), self.norm]
        for i, (block, cache, norm) in enumerate(zip(self.blocks, caches, norms[1:], strict=True)):
            x = block(x, angles, cache, ops, norm)
            if i < len(added):
                x = values_of(x) + added[i]
        return x

    def logits(self, stream: Stream, ops: Operations, out: Tensor | None = None) -> Tensor:
        """Logits (rows, vocab) fp32 of rows of the stream, written to `out` if it is given."""
        return ops.logits(stream, self.norm, self.head, out)
