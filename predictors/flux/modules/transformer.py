"""FLUX.1's transformer: two-stream blocks, then one-stream blocks. Knows no prompt, no schedule,
no checkpoint layout.

What depends on the timestep (modulation), the prompt (context) or the size (rotary table) comes in
ready made from `modules/conditioning.py` and `modules/rotary.py`: a step computes nothing twice.

Batch invariance: a row's bits must not depend on how many rows share the pass. Matmuls choose
their blocking by the number of rows, and vectorised GELU treats the tail of each thread's share
with other instructions, so both run row by row (`apart`); attention, norms, multiply and add give
each row the same bits in any company (tests/flux/test_batch_invariance.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.flux.modules.rotary import rotate

EPS = 1e-6
MLP_RATIO = 4
FLOAT16_MAX = 65504.0


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
        """Width of the residual stream."""
        return self.num_heads * self.head_dim

    @property
    def modulation_dim(self) -> int:
        """Features of one row's modulation: shift, scale and gate of every block, and the end."""
        return self.dim * (12 * self.num_double + 3 * self.num_single + 2)


def apart(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer` on each row of (rows, tokens, features) by itself, so that no row sees the others."""
    rows = zip(*(x.split(1) for x in inputs), strict=True)
    outputs = [layer(*row) for row in rows]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
        self.num_heads = shape.num_heads

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, tokens, dim) to normed query, normed key and value (rows, tokens, heads, d)."""
        heads = apart(self.qkv, x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.unbind(2)
        return self.query_norm(query), self.key_norm(key), value

    def mlp(self, row: Tensor) -> Tensor:
        """Feed-forward of one row (1, tokens, dim)."""
        down: Tensor = self.down(F.gelu(self.up(row), approximate="tanh"))
        return down


class DoubleBlock(nn.Module):
    """Text and picture keep their own weights and meet in one attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.image = Stream(shape)
        self.text = Stream(shape)

    def forward(
        self, text: Tensor, image: Tensor, modulation: Tensor, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """text (rows, T, dim), image (rows, I, dim), modulation (rows, 12 * dim): both anew."""
        # per stream: shift, scale, gate of attention, then of the MLP; each (rows, 1, dim)
        parts = modulation.unflatten(-1, (2, 6, -1))[:, :, :, None]
        image_parts, text_parts = (stream.unbind(1) for stream in parts.unbind(1))
        image_qkv = self.image.project(modulate(image, *image_parts[:2]))
        text_qkv = self.text.project(modulate(text, *text_parts[:2]))
        query, key, value = (torch.cat(pair, 1) for pair in zip(text_qkv, image_qkv, strict=True))
        mixed = attend(query, key, value, rotary)
        text_mixed, image_mixed = mixed.split((text.shape[1], image.shape[1]), dim=1)
        image = _update(self.image, image, image_mixed, image_parts)
        text = _update(self.text, text, text_mixed, text_parts)
        return _in_range(text), image


class SingleBlock(nn.Module):
    """Text and picture in one stream; attention and MLP side by side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.enter = nn.Linear(dim, (3 + MLP_RATIO) * dim)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=EPS)
        self.leave = nn.Linear((1 + MLP_RATIO) * dim, dim)
        self.num_heads = shape.num_heads

    def forward(self, tokens: Tensor, modulation: Tensor, rotary: Tensor) -> Tensor:
        """tokens (rows, T + I, dim), modulation (rows, 3 * dim): tokens anew."""
        dim = tokens.shape[-1]
        shift, scale, gate = modulation.unflatten(-1, (3, 1, -1)).unbind(1)
        entered = apart(self.enter, modulate(tokens, shift, scale))
        qkv, up = entered.split((3 * dim, MLP_RATIO * dim), dim=-1)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed = attend(self.query_norm(query), self.key_norm(key), value, rotary)
        return _in_range(tokens + gate * apart(self.join, mixed, up))

    def join(self, mixed: Tensor, up: Tensor) -> Tensor:
        """Attention's and the MLP's half of one row (1, tokens, ...) through one matmul."""
        halves = torch.cat((mixed, F.gelu(up, approximate="tanh")), dim=-1)
        joined: Tensor = self.leave(halves)
        return joined


class Ends(nn.Module):
    """The way in for patches and the way out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.enter = nn.Linear(shape.in_channels, shape.dim)
        self.leave = nn.Linear(shape.dim, shape.out_channels)

    def forward(self, image: Tensor, modulation: Tensor) -> Tensor:
        """image (rows, I, dim), modulation (rows, 2 * dim): velocity (rows, I, out_channels)."""
        scale, shift = modulation.unflatten(-1, (2, 1, -1)).unbind(1)  # diffusers' order here
        return apart(self.leave, modulate(image, shift, scale))


class Passes(NamedTuple):
    """The three repeated units as functions of (module, tensors): plain, or compiled by a runner.

    One compiled unit serves all blocks of its kind, so start-up compiles two blocks, not 57.
    """

    double: Callable[..., tuple[Tensor, Tensor]] = DoubleBlock.forward
    single: Callable[..., Tensor] = SingleBlock.forward
    ends: Callable[..., Tensor] = Ends.forward


EAGER = Passes()


class Transformer(nn.Module):
    """Velocity of the flow for packed latents."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.double_blocks = nn.ModuleList(DoubleBlock(shape) for _ in range(shape.num_double))
        self.single_blocks = nn.ModuleList(SingleBlock(shape) for _ in range(shape.num_single))
        self.ends = Ends(shape)

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        modulation: Tensor,
        rotary: Tensor,
        passes: Passes = EAGER,
    ) -> Tensor:
        """Velocity (rows, I, out_channels), dtype of the weights.

        latents (rows, I, in_channels), context (rows, T, dim) after the context embedder,
        modulation (rows, modulation_dim), rotary float32 (2, T + I, head_dim / 2).
        """
        dim, num_text = self.shape.dim, context.shape[1]
        sizes = [12 * dim] * self.shape.num_double + [3 * dim] * self.shape.num_single + [2 * dim]
        parts = iter(modulation.split(sizes, dim=-1))
        text, image = context, apart(self.ends.enter, latents)
        for block in self.double_blocks:
            text, image = passes.double(block, text, image, next(parts), rotary)
        tokens = torch.cat((text, image), dim=1)
        for block in self.single_blocks:
            tokens = passes.single(block, tokens, next(parts), rotary)
        return passes.ends(self.ends, tokens[:, num_text:], next(parts))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (rows, tokens, dim) with its row's shift and scale (rows, 1, dim)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def attend(query: Tensor, key: Tensor, value: Tensor, rotary: Tensor) -> Tensor:
    """Full attention over (rows, tokens, heads, head_dim) to (rows, tokens, dim)."""
    query, key = rotate(query, rotary), rotate(key, rotary)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # heads first
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _update(stream: Stream, x: Tensor, mixed: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    _, _, gate, mlp_shift, mlp_scale, mlp_gate = parts
    x = x + gate * apart(stream.out, mixed)
    return x + mlp_gate * apart(stream.mlp, modulate(x, mlp_shift, mlp_scale))


def _in_range(x: Tensor) -> Tensor:
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x
