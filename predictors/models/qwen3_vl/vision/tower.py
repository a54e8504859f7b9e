"""Qwen3-VL's vision tower for one picture or one step of a film: patches to decoder rows and
DeepStack rows.

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

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.adapters.places import LinearPlace
from predictors.chat.decoder.rotary import rotate, vision_table
from predictors.chat.decoder.weights import linear_slots
from predictors.chat.tensors import FRAMES, SECOND_FRAME
from predictors.models.qwen3_vl.vision.grid import Grid, VisionShape, interpolated

EPS = 1e-6


class VisionOperations(Protocol):
    """Work between matmuls over one picture: (patches, features), dtype of the weights."""

    @property
    def grid(self) -> Grid: ...

    @property
    def changes(self) -> RowChanges | None:
        """The picture's adapters."""

    def attend(self, qkv: Tensor) -> Tensor:
        """Joined heads (patches, hidden) of qkv (patches, 3 hidden), rotated, over all patches."""

    def normed(self, stream: Tensor, norm: nn.LayerNorm) -> Tensor: ...

    def added(self, stream: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """stream + update, and norm of that. May overwrite the stream."""


class PlainVision:
    """torch's own operations on any device, in the order of transformers. `ints` are those of
    `packed_grid` without rows beyond the picture, `changes` the picture's adapters."""

    def __init__(
        self,
        ints: Tensor,
        patches: int,
        shape: VisionShape,
        frequencies: Tensor,
        changes: RowChanges | None = None,
    ) -> None:
        self.changes = changes
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


def linear(x: Tensor, layer: nn.Linear, ops: VisionOperations) -> Tensor:
    """layer(x), with the picture's adapters."""
    out: Tensor = layer(x)
    return out if ops.changes is None else ops.changes.added(out, x, layer)


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
        mixed = ops.attend(linear(x, self.qkv, ops))
        stream, x = ops.added(stream, linear(mixed, self.out, ops), self.norm2)
        wide = F.gelu(linear(x, self.fc1, ops), approximate="tanh")
        update = linear(wide, self.fc2, ops)
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

    def forward(self, normed: Tensor, ops: VisionOperations) -> Tensor:
        """Rows (merged, out) of patches that are normed already."""
        merged = normed.reshape(-1, self.fc1.in_features)
        return linear(F.gelu(linear(merged, self.fc1, ops)), self.fc2, ops)


class VisionTower(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.Linear(shape.patch_values, shape.hidden)
        self.second_frame = nn.Linear(shape.patch_values, shape.hidden, bias=False)
        self.positions = nn.Embedding(shape.table_side**2, shape.hidden)
        self.blocks = nn.ModuleList(VisionBlock(shape) for _ in range(shape.depth))
        self.merger = Merger(shape, norms_group=False)
        self.deepstack = nn.ModuleList(Merger(shape, norms_group=True) for _ in shape.deepstack)

    def forward(self, patches: Tensor, ops: VisionOperations) -> Tensor:
        """Features (levels, merged, out) of `patches` (patches, channels * patch * patch or more):
        the embedding, then one level per DeepStack block. With twice as many columns the second
        half is what a second frame adds."""
        blocks = [block for block in self.blocks if isinstance(block, VisionBlock)]
        norms = [block.norm1 for block in blocks] + [self.merger.norm]
        width = self.shape.patch_values
        stream = linear(patches[:, :width], self.patch_embed, ops)
        if patches.shape[1] >= 2 * width:
            stream.addmm_(patches[:, width : 2 * width], self.second_frame.weight.t())
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
                found[i] = merger(ops.normed(group, merger.norm), ops)
        return torch.stack([self.merger(x, ops), *(found[i] for i in self.shape.deepstack)])


def vision_slots(vision: VisionTower) -> dict[str, Tensor]:
    slots = {
        FRAMES: vision.patch_embed.weight.data,
        SECOND_FRAME: vision.second_frame.weight.data,
        FRAMES.replace("weight", "bias"): vision.patch_embed.bias.data,
        "visual.pos_embed.weight": vision.positions.weight.data,
    }
    parts: dict[str, nn.Linear | nn.LayerNorm] = dict(_linears(vision))
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        parts |= {f"blocks.{i}.norm1": block.norm1, f"blocks.{i}.norm2": block.norm2}
    parts |= {f"{name}.norm": merger.norm for name, merger in _mergers(vision).items()}
    for name, part in parts.items():
        slots |= linear_slots(f"visual.{name}", part)
    return slots


def vision_places(vision: VisionTower) -> dict[str, LinearPlace]:
    """The layers of the tower's linears, for adapters."""
    linears = {f"visual.{name}": layer for name, layer in _linears(vision).items()}
    linears[FRAMES.removesuffix(".weight")] = vision.patch_embed
    return {name: LinearPlace.of(layer) for name, layer in linears.items()}


def _linears(vision: VisionTower) -> dict[str, nn.Linear]:
    """Of blocks and mergers, by the hub's names behind `visual.`."""
    found: dict[str, nn.Linear] = {}
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        found |= {
            f"blocks.{i}.attn.qkv": block.qkv,
            f"blocks.{i}.attn.proj": block.out,
            f"blocks.{i}.mlp.linear_fc1": block.fc1,
            f"blocks.{i}.mlp.linear_fc2": block.fc2,
        }
    for name, merger in _mergers(vision).items():
        found |= {f"{name}.linear_fc1": merger.fc1, f"{name}.linear_fc2": merger.fc2}
    return found


def _mergers(vision: VisionTower) -> dict[str, Merger]:
    found = {"merger": vision.merger}
    for i, merger in enumerate(vision.deepstack):
        assert isinstance(merger, Merger)
        found[f"deepstack_merger_list.{i}"] = merger
    return found
