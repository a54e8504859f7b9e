"""The operations of the vision tower's blocks (`VisionOperations`), and their plain torch form over
one grid: any device, any dtype, exact.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.rotary import rotate
from predictors.models.qwen2_5_vl.vision.grid import GridPlan


class VisionOperations(Protocol):
    """Over one picture. x and results are (patches, features) in the dtype of the weights, in
    window order if not said otherwise."""

    def embed(self, patches: Tensor, layer: nn.Linear, second: nn.Linear) -> Tensor:
        """layer(patches), from picture order to window order. Of two frames the columns behind
        those of `layer` are for `second`, whose output is added."""

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """norm(x)."""

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """layer(x)."""

    def attend(self, qkv: Tensor, is_full: bool) -> Tensor:
        """Joined heads (patches, hidden) of rotated qkv (patches, 3 hidden); in windows or full."""

    def added(self, stream: Tensor, update: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """stream + update, and norm of that. May overwrite the stream."""

    def gated(self, wide: Tensor) -> Tensor:
        """silu(first half) * second half of wide (patches, 2 n)."""

    def restored(self, tokens: Tensor) -> Tensor:
        """Tokens (merged, features) back in picture order."""


class Plain:
    """torch's own operations, in the order transformers has them. `changes` are the picture's
    adapters."""

    def __init__(
        self, plan: GridPlan, heads: int, merge: int, changes: RowChanges | None = None
    ) -> None:
        self._plan = plan
        self._changes = changes
        self._heads = heads
        self._group = merge**2

    def embed(self, patches: Tensor, layer: nn.Linear, second: nn.Linear) -> Tensor:
        width = layer.in_features
        found = self.linear(patches[:, :width], layer)
        if patches.shape[1] > width:
            found = found + second(patches[:, width:])
        groups = found.unflatten(0, (-1, self._group))
        stream: Tensor = groups.index_select(0, self._plan.order).flatten(0, 1)
        return stream

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        out: Tensor = norm(x)
        return out

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        out: Tensor = layer(x)
        return out if self._changes is None else self._changes.added(out, x, layer)

    def attend(self, qkv: Tensor, is_full: bool) -> Tensor:
        plan = self._plan
        q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).unbind(1)  # (patches, heads, head_dim)
        q, k = rotate(q, plan.cos, plan.sin), rotate(k, plan.cos, plan.sin)
        if is_full:
            mixed = _attend((q[None], k[None], v[None]), None)[0]
        else:
            mixed = _attend_windows((q, k, v), plan)
        return mixed.flatten(1)

    def added(self, stream: Tensor, update: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        stream = stream + update
        return stream, norm(stream)

    def gated(self, wide: Tensor) -> Tensor:
        gate, up = wide.chunk(2, dim=-1)
        return F.silu(gate) * up

    def restored(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(0, self._plan.back)


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
