"""The operations of `operations.py` as matmuls and Triton kernels of a GPU.

cuBLAS multiplies and one Triton kernel runs between two matmuls. The grid comes as a tensor of
integers and nothing is read back, so a pass over a bucket of patches can be captured once and run
for every grid that fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.decoder.fused_linears import gated, power_of_two
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.rotary import vision_table
from predictors.chat.vision.attention import attend_picture
from predictors.compute.kernels.attention import Attention
from predictors.models.qwen2_5_vl.vision.grid import PackedGrid, VisionShape
from predictors.models.qwen2_5_vl.vision.kernels import (
    add_norm_kernel,
    window_attention_kernel,
)

# the window kernel's tiling. One head each would be a third faster, and Triton 3.6 compiles it
# wrongly for sm_90: a loop of one turn leaves a barrier out, and rows come back as garbage.
HEADS_EACH = 2
WINDOW_WARPS = 4
LEAST = 16
"""No side of a tensor core's tile is shorter."""


class FusedVision:
    """Over one picture of a bucket. `ints` are `packed_grid`'s; `frequencies` (head_dim / 4,) fp32;
    `attention` is for heads of `padded_head` features. All on the device. `changes` are the
    picture's adapters."""

    def __init__(
        self,
        ints: Tensor,
        patches: int,
        shape: VisionShape,
        frequencies: Tensor,
        attention: Attention,
        changes: RowChanges | None = None,
    ) -> None:
        self._shape = shape
        self._changes = changes
        self._grid = PackedGrid.unpacked(ints, patches, shape)
        self._cos, self._sin = vision_table(self._grid.row, self._grid.column, frequencies)
        self._attention = attention

    def embed(self, patches: Tensor, layer: nn.Linear, second: nn.Linear) -> Tensor:
        """`patches` may have more columns than the layers take, all zeros. A picture's may have
        those of two frames, too: the second half is zero then."""
        weight = layer.weight
        if patches.shape[1] >= 2 * layer.in_features:
            weight = torch.cat((weight, second.weight), 1)
        spare = patches.shape[1] - weight.shape[1]
        weight = F.pad(weight, (0, spare)) if spare else weight
        ordered = patches.index_select(0, self._grid.order)
        out = torch.mm(ordered, weight.t())
        if self._changes is None:
            return out
        return self._changes.added(out, ordered[:, : layer.in_features], layer)

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return _add_norm(x, None, norm)

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        out = torch.addmm(layer.bias, x, layer.weight.t())
        return out if self._changes is None else self._changes.added(out, x, layer)

    def attend(self, qkv: Tensor, is_full: bool) -> Tensor:
        if not is_full:
            return self._attend_windows(qkv)
        places = (self._cos, self._sin, self._grid.real)
        return attend_picture(qkv, *places, self._shape.heads, self._attention)

    def _attend_windows(self, qkv: Tensor) -> Tensor:
        shape, grid = self._shape, self._grid
        out = qkv.new_empty(len(qkv), shape.hidden)
        low, high = split_head(shape.head_dim)
        each = HEADS_EACH if shape.heads % HEADS_EACH == 0 else shape.heads
        window_attention_kernel[(len(grid.starts), shape.heads // each)](
            qkv,
            self._cos,
            self._sin,
            grid.starts,
            grid.lengths,
            out,
            SCALE=shape.head_dim**-0.5,
            HEADS=shape.heads,
            DIM=shape.head_dim,
            ROWS=power_of_two(max(shape.window_patches, LEAST)),
            LOW=low,
            HIGH=high,
            EACH=each,
            num_warps=WINDOW_WARPS,
        )
        return out

    def added(self, stream: Tensor, update: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """Overwrites the stream."""
        return stream, _add_norm(stream, update, norm)

    def gated(self, wide: Tensor) -> Tensor:
        return gated(wide)

    def restored(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(0, self._grid.back)


def _add_norm(stream: Tensor, update: Tensor | None, norm: RMSNorm) -> Tensor:
    out, dim = torch.empty_like(stream), stream.shape[1]
    add_norm_kernel[(len(stream),)](
        stream,
        stream if update is None else update,
        norm.weight,
        out,
        EPS=norm.eps,
        HAS_UPDATE=update is not None,
        DIM=dim,
        BLOCK=power_of_two(dim),
    )
    return out


def split_head(head_dim: int) -> tuple[int, int]:
    """Columns, powers of two, together at least `head_dim`: 64 + 16 for 80, 32 + 0 for 32."""
    low = max(LEAST, 1 << (head_dim.bit_length() - 1))
    return low, 0 if low >= head_dim else max(LEAST, power_of_two(head_dim - low))
