"""The operations of `operations.py` on a GPU, with few passes over memory.

A FLUX step at 1024x1024 is 100 ms of matmul and attention on a Hopper card; norms, rotation, GELU,
gates and copies one by one add a third to that. Here all work between two matmuls is one Triton
kernel, GELU is in the matmul's epilogue, both streams write into one buffer, and the last linear of
a one-stream block is two matmuls into one sum instead of a copy. Nothing is read back and nothing
depends on values, so a whole step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from predictors.compute.kernels.fp8 import E4M3, Fp8Linear, RowScaled
from predictors.models.flux.modules.kernels import add_norm_kernel, gelu_rows_kernel, heads_kernel
from predictors.models.flux.modules.operations import (
    EPS,
    FLOAT16_MAX,
    Activations,
    Carry,
    Change,
    Layer,
    Norms,
    Operations,
    Streams,
    apart,
    shared,
)

ROWS = 16  # of an e4m3 matmul's input come in multiples

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query, key, value (rows, heads, tokens, head_dim) to (rows, tokens, heads * head_dim)."""


class Fused:
    """Operations in the dtype of the weights, usually bfloat16."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    @property
    def unquantized(self) -> Operations:
        return self

    def add_and_norm(
        self, carry: Carry, change: Change, num_text: int
    ) -> tuple[Tensor, Activations]:
        """Overwrites the carried tokens with the sum."""
        normed = torch.empty_like(carry.tokens)
        _add_and_norm(carry, change, num_text, normed, None)
        return carry.tokens, normed

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        out: Tensor = x.new_empty((*x.shape[:2], layers.image.weight.shape[0]))
        for part, place, layer in _parts(x, out, layers, num_text):
            torch.addmm(layer.bias, part, layer.weight.t(), out=place)
        return out

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        return apart(layer, x)

    def attend(self, qkv: Tensor, norms: Streams[Norms], rotary: Tensor, num_text: int) -> Tensor:
        """Overwrites qkv."""
        heads = _normed_heads(qkv, None, norms, rotary, num_text)
        return self._attention(*heads.transpose(1, 3).unbind(2))

    def project(self, mixed: Tensor, layers: Streams[Layer], num_text: int) -> Tensor:
        return self.linear(mixed, layers, num_text)

    def mlp(
        self,
        x: Activations,
        up: Streams[Layer],
        down: Streams[Layer],
        num_text: int,
    ) -> Tensor:
        return self.linear(self._gelu_of(x, up, num_text), down, num_text)

    def project_joined(self, mixed: Tensor, x: Activations, up: Layer, down: Layer) -> Tensor:
        """Sums over attention's features first, then adds the sum over the MLP's."""
        return self._joined(mixed, self._gelu_of(x, shared(up), 0), down)

    def _joined(self, mixed: Tensor, wide: Tensor, down: Layer) -> Tensor:
        weight, dim = down.weight.t(), mixed.shape[-1]
        out = torch.addmm(down.bias, mixed.flatten(0, 1), weight[:dim])
        out.addmm_(wide.flatten(0, 1), weight[dim:])
        return out.view_as(mixed)

    def _gelu_of(self, x: Tensor, up: Streams[Layer], num_text: int) -> Tensor:
        out = x.new_empty((*x.shape[:2], up.image.weight.shape[0]))
        for part, place, layer in _parts(x, out, up, num_text):
            torch.ops.aten._addmm_activation.out(
                layer.bias, part, layer.weight.t(), use_gelu=True, out=place
            )
        return out


class FusedFp8(Fused):
    """Operations with linears in fp8; a linear's input is quantised by the pass that makes it."""

    def __init__(self, attention: Attention, narrow_attention: Attention | None = None) -> None:
        super().__init__(attention)
        self._narrow_attention = narrow_attention

    @property
    def unquantized(self) -> Operations:
        return Fused(self._attention)

    def attend(self, qkv: Tensor, norms: Streams[Norms], rotary: Tensor, num_text: int) -> Tensor:
        """With e4m3 heads if there is attention for them; overwrites qkv."""
        if self._narrow_attention is None:
            return super().attend(qkv, norms, rotary, num_text)
        narrow = torch.empty((3, *qkv.shape[:2], qkv.shape[2] // 3), dtype=E4M3, device=qkv.device)
        _normed_heads(qkv, narrow, norms, rotary, num_text)
        return self._narrow_attention(*narrow.unflatten(-1, (-1, 2 * rotary.shape[-1])).unbind())

    def add_and_norm(
        self, carry: Carry, change: Change, num_text: int
    ) -> tuple[Tensor, Activations]:
        """Overwrites the carried tokens with the sum."""
        normed = _empty_rows(carry.tokens, carry.tokens.shape[-1])
        _add_and_norm(carry, change, num_text, normed.values, normed.scales)
        return carry.tokens, normed

    def linear(self, x: RowScaled, layers: Streams[Layer], num_text: int) -> Tensor:
        layer = layers.image
        assert isinstance(layer, Fp8Linear)
        shape = (*x.values.shape[:2], layer.out_features)
        out = torch.empty(shape, dtype=layer.bias.dtype, device=layer.bias.device)
        for part, place, each in _scaled_parts(x, out, layers, num_text):
            each(part, place)
        return out

    def project(self, mixed: Tensor, layers: Streams[Layer], num_text: int) -> Tensor:
        return self.linear(_gelu_rows(mixed, None), layers, num_text)

    def mlp(
        self,
        x: Activations,
        up: Streams[Layer],
        down: Streams[Layer],
        num_text: int,
    ) -> Tensor:
        return self.linear(_gelu_rows(None, self.linear(x, up, num_text)), down, num_text)

    def project_joined(self, mixed: Tensor, x: Activations, up: Layer, down: Layer) -> Tensor:
        """One scale per token over both halves, one matmul."""
        wide = self.linear(x, shared(up), 0)
        return self.linear(_gelu_rows(mixed, wide), shared(down), 0)


def _add_and_norm(
    carry: Carry, change: Change, num_text: int, normed: Tensor, scales: Tensor | None
) -> None:
    tokens = carry.tokens
    rows, num_tokens, dim = tokens.shape
    gate = change.shift if carry.gate is None else carry.gate  # unread without an update
    add_norm_kernel[(rows * num_tokens,)](
        tokens,
        tokens if carry.update is None else carry.update,
        normed,
        tokens if scales is None else scales,
        gate.image,
        change.shift.image,
        change.scale.image,
        num_tokens,
        num_text,
        change.shift.image.stride(0),
        _distance(change.shift),
        _distance(gate),
        EPS=EPS,
        DIM=dim,
        BLOCK=_power_of_two(dim),
        HAS_UPDATE=carry.update is not None,
        IS_FP8=scales is not None,
        LIMIT=FLOAT16_MAX if tokens.dtype == torch.float16 else 0.0,
        num_warps=4,
    )


def _normed_heads(
    qkv: Tensor, narrow: Tensor | None, norms: Streams[Norms], rotary: Tensor, num_text: int
) -> Tensor:
    """Norm and rotate query and key of qkv (rows, tokens, 3 * dim) in place; the result is its view
    (rows, tokens, 3, heads, head_dim). With `narrow` (3, rows, tokens, dim) all three are written
    there as e4m3 instead."""
    half = rotary.shape[-1]
    rows, tokens, features = qkv.shape
    heads = features // (6 * half)
    heads_kernel[(rows * tokens, 2 if narrow is None else 3)](
        qkv,
        qkv if narrow is None else narrow,
        norms.text.query.weight,
        norms.image.query.weight,
        norms.text.key.weight,
        norms.image.key.weight,
        rotary,
        tokens,
        num_text,
        EPS=EPS,
        HEADS=heads,
        HEADS_BLOCK=_power_of_two(heads),
        HALF=half,
        IS_FP8=narrow is not None,
        num_warps=4,
    )
    return qkv.view(rows, tokens, 3, heads, 2 * half)


def _distance(parts: Streams[Tensor]) -> int:
    """Elements from the picture's part to the text's: both are views of one row of modulation."""
    return int(parts.text.storage_offset()) - int(parts.image.storage_offset())


def _gelu_rows(mixed: Tensor | None, wide: Tensor | None) -> RowScaled:
    """(mixed, GELU(wide)) side by side, quantised; each is (rows, tokens, features) or None."""
    some = wide if mixed is None else mixed
    assert some is not None
    num_mixed = 0 if mixed is None else mixed.shape[-1]
    num_wide = 0 if wide is None else wide.shape[-1]
    width = num_mixed + num_wide
    out = _empty_rows(some, width)
    gelu_rows_kernel[(some.shape[0] * some.shape[1],)](
        some if mixed is None else mixed,
        some if wide is None else wide,
        out.values,
        out.scales,
        NUM_MIXED=num_mixed,
        NUM_WIDE=num_wide,
        BLOCK=_power_of_two(width),
        num_warps=8 if width > 4096 else 4,
    )
    return out


def narrow_rows(x: Tensor) -> RowScaled:
    """x (rows, features) in fp8, as `quantize_rows`. The result has a multiple of 16 rows, as fast
    matmuls want it; those beyond hold anything."""
    rows, width = x.shape
    held = -(-rows // ROWS) * ROWS
    out = RowScaled(
        torch.empty(held, width, dtype=E4M3, device=x.device),
        torch.empty(held, 1, dtype=torch.float32, device=x.device),
    )
    gelu_rows_kernel[(rows,)](
        x,
        x,
        out.values,
        out.scales,
        NUM_MIXED=width,
        NUM_WIDE=0,
        BLOCK=_power_of_two(width),
        num_warps=8 if width > 4096 else 4,
    )
    return out


def _empty_rows(like: Tensor, width: int) -> RowScaled:
    shape = like.shape[:2]
    return RowScaled(
        torch.empty((*shape, width), dtype=E4M3, device=like.device),
        torch.empty((*shape, 1), dtype=torch.float32, device=like.device),
    )


def _parts(
    x: Tensor, out: Tensor, layers: Streams[Layer], num_text: int
) -> Iterator[tuple[Tensor, Tensor, Layer]]:
    """Input and output matrices with their layer: one for all tokens, or two views per row."""
    if layers.are_one:
        yield x.flatten(0, 1), out.flatten(0, 1), layers.image
        return
    for source, target in zip(x.unbind(), out.unbind(), strict=True):
        yield source[:num_text], target[:num_text], layers.text
        yield source[num_text:], target[num_text:], layers.image


def _scaled_parts(
    x: RowScaled, out: Tensor, layers: Streams[Layer], num_text: int
) -> Iterator[tuple[RowScaled, Tensor, Layer]]:
    values = _parts(x.values, out, layers, num_text)
    scales = _parts(x.scales, out, layers, num_text)
    for (value, place, layer), (scale, _, _) in zip(values, scales, strict=True):
        yield RowScaled(value, scale), place, layer


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
