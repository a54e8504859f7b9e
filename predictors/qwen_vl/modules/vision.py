"""Qwen2.5-VL's vision tower for still pictures, without a single question to the device.

Everything that depends only on the grid (order of patches, window borders, rotary tables) is a
`GridPlan`, made on the CPU once per grid. Windows are dense batches of at most 64 patches;
incomplete ones are padded around attention only, so the linears see no padding. Knows no file and
no request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predictors.qwen_vl.modules.layers import GatedMLP, RMSNorm
from predictors.qwen_vl.modules.rotary import rotate, vision_table

VISION_EPS = 1e-6
ROPE_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of a vision tower. `window` is in pixels, `full_blocks` attend across windows."""

    depth: int
    hidden: int
    heads: int
    mlp: int
    out: int
    patch: int
    temporal_patch: int
    channels: int
    merge: int
    window: int
    full_blocks: frozenset[int]
    rope_theta: float = ROPE_THETA

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers per patch of a still picture: one frame, since both frames of a pair are the
        same.
        """
        return self.channels * self.patch * self.patch

    @property
    def padded_mlp(self) -> int:
        """`mlp` rounded up to 64: 3420 is no multiple of 8, as the fast GPU kernels need it."""
        return -(-self.mlp // 64) * 64


@dataclass(frozen=True, slots=True)
class GridPlan:
    """What the tower needs to know of a grid of patches. All tensors on the device of the tower.

    `order` (merged,) int64 puts groups of merge x merge patches into window order, `back` undoes
    it; `cos`, `sin` (patches, head_dim) in window order; `gather` (windows * slots,) int64 picks
    each window's patches and `scatter` (patches,) int64 takes them back; `mask` (windows, 1, 1,
    slots) bool marks real ones. `gather`, `scatter` and `mask` are None when all windows are full.
    """

    order: Tensor
    back: Tensor
    cos: Tensor
    sin: Tensor
    slots: int
    gather: Tensor | None
    scatter: Tensor | None
    mask: Tensor | None

    def moved(self, move: Callable[[Tensor], Tensor]) -> GridPlan:
        """The same plan with every tensor `move`d."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


def plan_grid(height: int, width: int, shape: VisionShape) -> GridPlan:
    """The plan for `height` x `width` patches, on the CPU. Both are multiples of `shape.merge`."""
    merge, side = shape.merge, shape.window // shape.merge // shape.patch
    rows, columns = height // merge, width // merge
    index = torch.arange(rows * columns).view(rows, columns)
    windows = [part.flatten() for band in index.split(side) for part in band.split(side, dim=1)]
    order = torch.cat(windows)
    row, column = _patch_places(rows, columns, merge)
    patches = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten()
    cos, sin = vision_table(row[patches], column[patches], shape.head_dim, shape.rope_theta)
    if len(windows) == 1:  # smaller than a window: dense as it is
        return GridPlan(order, order.argsort(), cos, sin, len(patches), None, None, None)
    slots = side * side * merge**2
    lengths = torch.tensor([len(window) * merge**2 for window in windows])
    padding = _padding(lengths, slots) if bool((lengths < slots).any()) else (None, None, None)
    return GridPlan(order, order.argsort(), cos, sin, slots, *padding)


def _patch_places(rows: int, columns: int, merge: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch in the order that the image preparation writes them: group by
    group.
    """
    row = torch.arange(rows * merge).view(rows, 1, merge, 1).expand(rows, columns, merge, merge)
    column = torch.arange(columns * merge).view(1, columns, 1, merge)
    return row.flatten(), column.expand(rows, columns, merge, merge).flatten()


def _padding(lengths: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    starts = lengths.cumsum(0) - lengths
    lane = torch.arange(slots)
    real = lane < lengths[:, None]  # (windows, slots)
    gather = torch.where(real, starts[:, None] + lane, starts[:, None])  # padding repeats a patch
    scatter = real.flatten().nonzero().flatten()
    return gather.flatten(), scatter, real[:, None, None, :]


class VisionAttention(nn.Module):
    """Attention inside windows, or across the whole picture."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.out = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, x: Tensor, plan: GridPlan, full: bool) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        )  # (patches, heads, head_dim)
        q, k = rotate(q, plan.cos, plan.sin), rotate(k, plan.cos, plan.sin)
        if full:
            mixed = _attend((q[None], k[None], v[None]), None)[0]
        else:
            mixed = _attend_windows((q, k, v), plan)
        out: Tensor = self.out(mixed.flatten(1))
        return out


def _attend_windows(qkv: tuple[Tensor, Tensor, Tensor], plan: GridPlan) -> Tensor:
    if plan.gather is None or plan.scatter is None:
        dense = tuple(x.unflatten(0, (-1, plan.slots)) for x in qkv)
        return _attend(dense, None).flatten(0, 1)
    gather = plan.gather
    dense = tuple(x.index_select(0, gather).unflatten(0, (-1, plan.slots)) for x in qkv)
    return _attend(dense, plan.mask).flatten(0, 1).index_select(0, plan.scatter)


def _attend(qkv: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """q, k, v (windows, rows, heads, head_dim) -> the same shape."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class VisionBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.norm1 = RMSNorm(shape.hidden, VISION_EPS)
        self.attention = VisionAttention(shape)
        self.norm2 = RMSNorm(shape.hidden, VISION_EPS)
        self.mlp = GatedMLP(shape.hidden, shape.padded_mlp, bias=True)

    def forward(self, x: Tensor, plan: GridPlan, full: bool) -> Tensor:
        x = x + self.attention(self.norm1(x), plan, full)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Merger(nn.Module):
    """Four neighbouring patches become one token of the decoder's width."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        wide = shape.hidden * shape.merge**2
        self.norm = RMSNorm(shape.hidden, VISION_EPS)
        self.fc1 = nn.Linear(wide, wide)
        self.fc2 = nn.Linear(wide, shape.out)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.norm(x).view(-1, self.fc1.in_features)
        out: Tensor = self.fc2(F.gelu(self.fc1(merged)))
        return out


class VisionTower(nn.Module):
    """Patches of one picture to tokens of the decoder."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.Linear(shape.patch_values, shape.hidden, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(shape) for _ in range(shape.depth))
        self.merger = Merger(shape)

    def forward(self, patches: Tensor, plan: GridPlan) -> Tensor:
        """Tokens (merged, out) for `patches` (patches, channels * patch * patch), both in picture
        order.
        """
        merge = self.shape.merge**2
        x = self.patch_embed(patches)
        x = x.unflatten(0, (-1, merge)).index_select(0, plan.order).flatten(0, 1)
        for i, block in enumerate(self.blocks):
            x = block(x, plan, i in self.shape.full_blocks)
        tokens: Tensor = self.merger(x).index_select(0, plan.back)
        return tokens
