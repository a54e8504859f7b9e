"""`VisionOperations` as kernels of a GPU. The grid is a tensor and nothing is read back, so a pass
over a bucket of patches is captured once and serves every grid that fits.

cuBLAS multiplies and adds biases, torch applies GELU, and attention is the kernel that
`choose_attention` measured as the fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.decoder.fused_linears import power_of_two
from predictors.chat.decoder.rotary import vision_table
from predictors.chat.vision.attention import attend_picture
from predictors.compute.kernels.attention import Attention
from predictors.models.qwen3_vl.vision.grid import Grid, VisionShape
from predictors.models.qwen3_vl.vision.kernels import add_norm_kernel


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
        self.changes = changes
        self.grid = Grid.unpacked(ints, patches)
        self._heads = shape.heads
        self._cos, self._sin = vision_table(self.grid.row, self.grid.column, frequencies)
        self._attention = attention

    def attend(self, qkv: Tensor) -> Tensor:
        places = (self._cos, self._sin, self.grid.real)
        return attend_picture(qkv, *places, self._heads, self._attention)

    def normed(self, stream: Tensor, norm: nn.LayerNorm) -> Tensor:
        out: Tensor = norm(stream)
        return out

    def added(self, stream: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """Overwrites the stream."""
        out, dim = torch.empty_like(stream), stream.shape[1]
        add_norm_kernel[(len(stream),)](
            stream,
            update,
            norm.weight,
            norm.bias,
            out,
            EPS=norm.eps,
            DIM=dim,
            BLOCK=power_of_two(dim),
        )
        return stream, out
