"""The five operations of a decoder block (`Operations`), and their plain torch form: any device,
any dtype, exact.

The kernels in `fused` are the other form, so one definition of the model serves the CPU, a prompt
pass and a decode step on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.paged import paged_attention
from predictors.chat.decoder.rotary import rotate
from predictors.compute.kernels.fp8 import Fp8Linear, RowScaled, dequantized, quantize_rows

if TYPE_CHECKING:
    from predictors.compute.kernels.hopper_linear import Weighted  # it needs CUDA

Layer = nn.Linear | Fp8Linear


class GatedRows(NamedTuple):
    """A gate's output in fp8, and in the dtype of the weights, as adapters read it."""

    narrow: RowScaled
    plain: Tensor


Wide = Tensor | RowScaled | GatedRows
"""Output of an operation: fp8 if the next operation's weight is."""


class WeightedStream(NamedTuple):
    """A stream with the input of the linear behind `norm`, both from one kernel.

    `weighted` goes with exactly these `values` (rows, hidden). An operation that changes the values
    returns a tensor, so that the next one computes `weighted` again."""

    values: Tensor
    norm: RMSNorm
    weighted: Weighted


Stream = Tensor | WeightedStream
"""The residual stream (rows, hidden) between two operations."""


def values_of(stream: Stream) -> Tensor:
    return stream if isinstance(stream, Tensor) else stream.values


class Angles(NamedTuple):
    """cos and sin, each (rows, head_dim) float32: of each row; for a fused decode step of each
    position, looked up in the kernel."""

    cos: Tensor
    sin: Tensor


class HeadNorms(NamedTuple):
    """Norms over head_dim, of each head of q and of each head of k, before they are rotated."""

    query: RMSNorm
    key: RMSNorm


class CachePlaces(NamedTuple):
    """Each sequence's place in the cache, see `paged_attention`."""

    places: Tensor
    pages: Tensor
    spans: Tensor


class Operations(Protocol):
    """x and results are (rows, features) in the dtype of the weights."""

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        """layer(norm(x))."""

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        """The joined heads (rows, heads * head_dim) of qkv (rows, (heads + 2 kv_heads) * head_dim).

        q and k go through `norms` and are rotated; k and v are written into `cache` (2, pages,
        page_tokens, kv_heads, head_dim). May overwrite qkv."""

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Stream:
        """stream + layer(x), the layer without bias. May overwrite the stream.

        `following` is the norm that the sum goes through next, if nothing changes it before."""

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        """silu(gate) * up of the packed layer's (gate, up) of norm(x)."""

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        """head(norm(x)) in float32, written to `out` (rows, vocab) if it is given."""


class PlainOperations:
    """torch's own operations, in the order transformers has them. An fp8 layer quantises each row
    of its input, and multiplies in float32."""

    def __init__(self, places: CachePlaces) -> None:
        self._places = places

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        return _linear(norm(values_of(x)), layer)

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        kv = cache.shape[-2] * head_dim
        parts = qkv.split([qkv.shape[-1] - 2 * kv, kv, kv], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in parts)  # (rows, heads, head_dim)
        if norms is not None:
            q, k = norms.query(q), norms.key(k)
        q, k = rotate(q, *angles), rotate(k, *angles)
        mixed: Tensor = paged_attention(q, k, v, cache, *self._places).flatten(1)
        return mixed

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Stream:
        assert isinstance(x, Tensor)
        return values_of(stream) + _linear(x, layer)

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        return self.gated(_linear(norm(values_of(x)), layer))

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        out: Tensor = norm(x)
        return out

    def gated(self, wide: Tensor) -> Tensor:
        gate, up = wide.chunk(2, dim=-1)
        out: Tensor = F.silu(gate) * up
        return out

    def narrowed(self, wide: Tensor, layer: Layer) -> None:
        return None

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        found: Tensor = head(norm(values_of(x))).to(torch.float32)
        return found if out is None else out.copy_(found)


def _linear(x: Tensor, layer: Layer) -> Tensor:
    if isinstance(layer, Fp8Linear):
        return layer.reference(dequantized(quantize_rows(x)))
    out: Tensor = layer(x)
    return out
