"""FLUX.1's transformer: two-stream blocks, then one-stream blocks.

Blocks are made of `Operations`: exact ones (`operations.py`) or those of a GPU (`fused.py`).
Modulation, context and rotary table are inputs, made once per picture by `conditioning.py` and
`rotary.py`. Text and picture are one buffer of tokens from the first block to the last:

    context (rows, T, dim) ---------------------+
                                                +--> tokens (rows, T + I, dim)
    latents (rows, I, channels) -> Ends.embed --+        |
                                                         v
                 DoubleBlock, num_double times -> SingleBlock, num_single times -> Ends
                                                                                    |
                                                                                    v
                                                       velocity (rows, I, channels)

T counts the prompt's tokens, I the picture's patches; a row is one prompt of one picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from predictors.compute.kernels.fp8 import Fp8Linear
from predictors.models.flux.modules.operations import (
    EPS,
    Carry,
    Change,
    Norms,
    Operations,
    Streams,
    shared,
)

MLP_RATIO = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one checkpoint's transformer, in features unless named otherwise."""

    num_double: int
    num_single: int
    num_heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    pooled_dim: int
    has_guidance: bool
    rotary_axes: tuple[int, ...]

    @property
    def dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_blocks(self) -> int:
        return self.num_double + self.num_single

    @property
    def modulation_dim(self) -> int:
        """Features of one row's modulation: shift, scale and gate of every block, and the end."""
        return self.dim * (12 * self.num_double + 3 * self.num_single + 2)


class Stream(nn.Module):
    """The weights of one stream (picture or text) in a two-stream block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, MLP_RATIO * dim)
        self.down = nn.Linear(MLP_RATIO * dim, dim)


class DoubleBlock(nn.Module):
    """Text and picture have their own weights and share one attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.image = Stream(shape)
        self.text = Stream(shape)

    def forward(
        self, ops: Operations, carry: Carry, modulation: Tensor, rotary: Tensor, num_text: int
    ) -> Carry:
        """The next block's carry, for carry (rows, T + I, dim), modulation (rows, 12 * dim) and
        rotary (2, T + I, head_dim / 2)."""
        # shift, scale and gate of attention, then of the MLP; the picture's before the text's
        parts = modulation.unflatten(-1, (2, 6, -1))[:, :, :, None].unbind(1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            Streams(of_text, of_image)
            for of_image, of_text in zip(*(part.unbind(1) for part in parts), strict=True)
        )
        text, image = self.text, self.image
        norms = Streams(
            Norms(text.query_norm, text.key_norm), Norms(image.query_norm, image.key_norm)
        )
        tokens, x = ops.add_and_norm(carry, Change(shift, scale), num_text)
        qkv = ops.linear(x, Streams(text.qkv, image.qkv), num_text)
        mixed = ops.attend(qkv, norms, rotary, num_text)
        update = ops.project(mixed, Streams(text.out, image.out), num_text)
        carry = Carry(tokens, update, gate)
        tokens, x = ops.add_and_norm(carry, Change(mlp_shift, mlp_scale), num_text)
        update = ops.mlp(x, Streams(text.up, image.up), Streams(text.down, image.down), num_text)
        return Carry(tokens, update, mlp_gate)


class SingleBlock(nn.Module):
    """Text and picture share all weights; attention and MLP run side by side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.up = nn.Linear(dim, MLP_RATIO * dim)
        self.out = nn.Linear((1 + MLP_RATIO) * dim, dim)

    def forward(
        self, ops: Operations, carry: Carry, modulation: Tensor, rotary: Tensor, num_text: int
    ) -> Carry:
        """The next block's carry, for carry (rows, T + I, dim) and modulation (rows, 3 * dim)."""
        shift, scale, gate = map(shared, modulation.unflatten(-1, (3, 1, -1)).unbind(1))
        norms = shared(Norms(self.query_norm, self.key_norm))
        tokens, x = ops.add_and_norm(carry, Change(shift, scale), num_text)
        mixed = ops.attend(ops.linear(x, shared(self.qkv), num_text), norms, rotary, num_text)
        return Carry(tokens, ops.project_joined(mixed, x, self.up, self.out), gate)


class Ends(nn.Module):
    """The linear that embeds patches, and the last norm and linear."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Linear(shape.in_channels, shape.dim)
        self.project = nn.Linear(shape.dim, shape.out_channels)

    def forward(self, ops: Operations, carry: Carry, modulation: Tensor, num_text: int) -> Tensor:
        """Velocity (rows, I, channels); carry (rows, T + I, dim), modulation (rows, 2 * dim)."""
        scale, shift = map(shared, modulation.unflatten(-1, (2, 1, -1)).unbind(1))  # in this order
        _, x = ops.add_and_norm(carry, Change(shift, scale), num_text)
        return ops.end(x[:, num_text:], self.project)


class BlockUnits(NamedTuple):
    """The forward functions of the three kinds of block: plain, or compiled.

    One compiled function serves all blocks of its kind, so a start compiles two blocks, not 57.
    """

    double: Callable[..., Carry] = DoubleBlock.forward
    single: Callable[..., Carry] = SingleBlock.forward
    ends: Callable[..., Tensor] = Ends.forward


EAGER = BlockUnits()


class Transformer(nn.Module):
    """The velocity of the flow, for packed latents."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.double_blocks = nn.ModuleList(DoubleBlock(shape) for _ in range(shape.num_double))
        self.single_blocks = nn.ModuleList(SingleBlock(shape) for _ in range(shape.num_single))
        self.ends = Ends(shape)

    def forward(
        self,
        ops: Operations,
        units: BlockUnits,
        latents: Tensor,
        context: Tensor,
        modulation: Tensor,
        rotary: Tensor,
    ) -> Tensor:
        """Velocity (rows, I, out_channels), dtype of the weights.

        latents (rows, I, in_channels), context (rows, T, dim) after the context embedder,
        modulation (rows, modulation_dim), rotary float32 (2, T + I, head_dim / 2).
        """
        carry = self.begin(ops, latents, context)
        blocks = range(self.shape.num_blocks)
        carry = self.advance(blocks, ops, units, carry, modulation, rotary, context.shape[1])
        return self.end(ops, units, carry, modulation, context.shape[1])

    def begin(self, ops: Operations, latents: Tensor, context: Tensor) -> Carry:
        """The carry that the first block reads."""
        embedded = ops.unquantized.end(latents, self.ends.embed)
        return Carry(torch.cat((context, embedded), dim=1), None, None)

    def advance(
        self,
        blocks: range,
        ops: Operations,
        units: BlockUnits,
        carry: Carry,
        modulation: Tensor,
        rotary: Tensor,
        num_text: int,
    ) -> Carry:
        """Run these blocks, counted from the first two-stream block to the last one-stream one."""
        parts, num_double = self._modulations(modulation), self.shape.num_double
        for i in blocks:
            if i < num_double:
                unit, block = units.double, self.double_blocks[i]
            else:
                unit, block = units.single, self.single_blocks[i - num_double]
            carry = unit(block, ops, carry, parts[i], rotary, num_text)
        return carry

    def end(
        self, ops: Operations, units: BlockUnits, carry: Carry, modulation: Tensor, num_text: int
    ) -> Tensor:
        """The velocity, after the last block."""
        last = self._modulations(modulation)[-1]
        return units.ends(self.ends, ops.unquantized, carry, last, num_text)

    def _modulations(self, modulation: Tensor) -> Sequence[Tensor]:
        """Views of every block's part, and of the ends'."""
        dim, shape = self.shape.dim, self.shape
        sizes = [12 * dim] * shape.num_double + [3 * dim] * shape.num_single + [2 * dim]
        parts: Sequence[Tensor] = modulation.split(sizes, dim=-1)
        return parts


def forward_pieces(
    transformer: Transformer,
    operations: Callable[..., Operations],
    units: BlockUnits,
    count: int,
) -> Sequence[Callable[..., Carry | Tensor]]:
    """`transformer`'s forward in at most `count` pieces of about as many blocks each, for
    `run_pieces`. Each calls `operations` with the pass's inputs after the fourth, if there are any.
    """
    num_blocks = transformer.shape.num_blocks
    count = min(count, num_blocks)
    bounds = [num_blocks * i // count for i in range(count + 1)]

    def piece(first: int, last: int, *given: Any) -> Carry | Tensor:
        latents, context, modulation, rotary, *more = given[1:] if first else given
        ops = operations(*more)
        carry: Carry = given[0] if first else transformer.begin(ops, latents, context)
        blocks = range(first, last)
        num_text = context.shape[1]
        carry = transformer.advance(blocks, ops, units, carry, modulation, rotary, num_text)
        if last < num_blocks:
            return carry
        return transformer.end(ops, units, carry, modulation, num_text)

    return [partial(piece, first, last) for first, last in itertools.pairwise(bounds)]


def quantized(transformer: Transformer, *, keep: bool) -> Transformer:
    """`transformer` with the linears of its blocks in fp8; everything else is shared.

    Ends and norms stay as they are: they are a thousandth of the work. With `keep` the result is a
    second module beside the first, else the first itself, whose weights are freed one by one.
    """
    twin = transformer
    if keep:
        with torch.device("meta"):
            twin = Transformer(transformer.shape)
        twin.ends = transformer.ends
        twin.eval().requires_grad_(False)
    for path, layer in list(transformer.named_modules()):
        is_norm = isinstance(layer, nn.RMSNorm)
        if is_norm or (isinstance(layer, nn.Linear) and not path.startswith("ends.")):
            twin.set_submodule(path, layer if is_norm else Fp8Linear.of(layer))
    return twin
