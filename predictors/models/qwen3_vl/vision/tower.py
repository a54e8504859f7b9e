"""Qwen3-VL's vision tower for still pictures: patches to decoder rows and DeepStack rows.

The blocks are ordinary pre-norm ones with full attention over one picture. Three of their outputs
are merged on their own (DeepStack, arXiv 2406.04334) and added to the first decoder layers. What
differs between plain torch and a GPU's kernels is behind `VisionOperations`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.decoder.rotary import rotate, vision_table
from predictors.chat.decoder.weights import linear_slots
from predictors.chat.tensors import FRAMES
from predictors.models.qwen3_vl.vision.grid import Grid, VisionShape, interpolated

EPS = 1e-6


class VisionOperations(Protocol):
    """Work between matmuls over one picture: (patches, features), dtype of the weights."""

    @property
    def grid(self) -> Grid: ...

    def attend(self, qkv: Tensor) -> Tensor:
        """Joined heads (patches, hidden) of qkv (patches, 3 hidden), rotated, over all patches."""

    def normed(self, stream: Tensor, norm: nn.LayerNorm) -> Tensor: ...

    def added(self, stream: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """stream + update, and norm of that. May overwrite the stream."""


class PlainVision:
    """torch's own operations on any device, in the order of transformers. `ints` are those of
    `packed_grid` without rows beyond the picture."""

    def __init__(self, ints: Tensor, patches: int, shape: VisionShape, frequencies: Tensor) -> None:
        self.grid = Grid.unpacked(ints, patches)
        self._heads = shape.heads
        self._cos, self._sin = vision_table(self.grid.row, self.grid.column, frequencies)

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).unbind(1)  # (patches, heads, head_dim)
        q, k = rotate(q, self._cos, self._sin), rotate(k, self._cos, self._sin)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return mixed[0].transpose(0, 1).flatten(1)

    def normed(self, stream: Tensor, norm: nn.LayerNorm) -> Tensor:
        out: Tensor = norm(stream)
        return out

    def added(self, stream: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        stream = stream + update
        return stream, norm(stream)


class VisionBlock(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.hidden, EPS)
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.out = nn.Linear(shape.hidden, shape.hidden)
        self.norm2 = nn.LayerNorm(shape.hidden, EPS)
        self.fc1 = nn.Linear(shape.hidden, shape.mlp)
        self.fc2 = nn.Linear(shape.mlp, shape.hidden)

    def forward(
        self, stream: Tensor, x: Tensor, following: nn.LayerNorm, ops: VisionOperations
    ) -> tuple[Tensor, Tensor]:
        """The new stream and its `following` norm, from the stream and its first norm `x`."""
        stream, x = ops.added(stream, self.out(ops.attend(self.qkv(x))), self.norm2)
        update = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return ops.added(stream, update, following)


class Merger(nn.Module):
    """merge x merge neighbouring patches to one row of the decoder's width. `norms_group`: the
    norm spans the joined patches (DeepStack) instead of each patch."""

    def __init__(self, shape: VisionShape, *, norms_group: bool) -> None:
        super().__init__()
        wide = shape.hidden * shape.merge**2
        self.norm = nn.LayerNorm(wide if norms_group else shape.hidden, EPS)
        self.fc1 = nn.Linear(wide, wide)
        self.fc2 = nn.Linear(wide, shape.out)

    def forward(self, normed: Tensor) -> Tensor:
        """Rows (merged, out) of patches that are normed already."""
        merged = normed.reshape(-1, self.fc1.in_features)
        out: Tensor = self.fc2(F.gelu(self.fc1(merged)))
        return out


class VisionTower(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.Linear(shape.patch_values, shape.hidden)
        self.positions = nn.Embedding(shape.table_side**2, shape.hidden)
        self.blocks = nn.ModuleList(VisionBlock(shape) for _ in range(shape.depth))
        self.merger = Merger(shape, norms_group=False)
        self.deepstack = nn.ModuleList(Merger(shape, norms_group=True) for _ in shape.deepstack)

    def forward(self, patches: Tensor, ops: VisionOperations) -> Tensor:
        """Features (levels, merged, out) of `patches` (patches, channels * patch * patch or more):
        the embedding, then one level per DeepStack block."""
        blocks = [block for block in self.blocks if isinstance(block, VisionBlock)]
        norms = [block.norm1 for block in blocks] + [self.merger.norm]
        stream = self.patch_embed(patches[:, : self.shape.patch_values])
        places = interpolated(self.positions.weight, ops.grid, self.shape.table_side)
        stream = stream + places.to(stream.dtype)
        x = ops.normed(stream, norms[0])
        found: dict[int, Tensor] = {}
        for i, (block, (_, following)) in enumerate(zip(blocks, pairwise(norms), strict=True)):
            stream, x = block(stream, x, following, ops)
            if i in self.shape.deepstack:
                merger = self.deepstack[self.shape.deepstack.index(i)]
                assert isinstance(merger, Merger)
                group = stream.view(-1, merger.fc1.in_features)
                found[i] = merger(ops.normed(group, merger.norm))
        return torch.stack([self.merger(x), *(found[i] for i in self.shape.deepstack)])


def vision_slots(vision: VisionTower) -> dict[str, Tensor]:
    slots = {
        FRAMES: vision.patch_embed.weight.data,
        FRAMES.replace("weight", "bias"): vision.patch_embed.bias.data,
        "visual.pos_embed.weight": vision.positions.weight.data,
    }
    parts: dict[str, nn.Linear | nn.LayerNorm] = {}
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        parts |= {
            f"blocks.{i}.norm1": block.norm1,
            f"blocks.{i}.attn.qkv": block.qkv,
            f"blocks.{i}.attn.proj": block.out,
            f"blocks.{i}.norm2": block.norm2,
            f"blocks.{i}.mlp.linear_fc1": block.fc1,
            f"blocks.{i}.mlp.linear_fc2": block.fc2,
        }
    mergers = {f"deepstack_merger_list.{i}": merger for i, merger in enumerate(vision.deepstack)}
    for name, merger in {"merger": vision.merger, **mergers}.items():
        assert isinstance(merger, Merger)
        parts |= {
            f"{name}.norm": merger.norm,
            f"{name}.linear_fc1": merger.fc1,
            f"{name}.linear_fc2": merger.fc2,
        }
    for name, part in parts.items():
        slots |= linear_slots(f"visual.{name}", part)
    return slots
