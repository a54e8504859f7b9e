"""The weights that quantised layers stand for. All arithmetic is in float32, on one device.

`read` gives a stored tensor on that device. Results are float32. Beside the result there is at most
one more tensor of its size, where columns are reordered, and narrow ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor

from predictors.compute.checkpoint.quantised.layers import (
    AwqLayer,
    CompressedLayer,
    GptqLayer,
    Layer,
    PackedLayer,
    ScaledLayer,
    TableLayer,
)
from predictors.errors import EngineFailed

Read = Callable[[str], Tensor]
"""From a stored name to the tensor, in its stored dtype."""
Change = Callable[[Tensor, Tensor], Tensor]
"""An operation in place: `Tensor.mul_`, `Tensor.sub_`."""
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble i of a word, low ones first, holds its output feature (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
BNB_UNIT = 7.874015718698502e-3  # 1 / 127 as bitsandbytes has it


@singledispatch
def dequantised(layer: Layer, read: Read) -> Tensor:
    """The weight of `layer`, float32 of its shape. Raises `EngineFailed` for scales that are not
    finite, and for zero points and groups that are out of range."""
    raise TypeError(f"no rule is registered for a {type(layer).__name__}")


@dequantised.register
def _scaled(layer: ScaledLayer, read: Read) -> Tensor:
    values = read(layer.parts["weight"]).float()
    rows, columns = layer.block
    matrix = values.view(values.shape[0] if values.ndim else 1, -1)
    scales = _finite(layer, "scale", read)
    grid = (-(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns))
    if "zero" in layer.parts:
        zeros = read(layer.parts["zero"]).float().view(grid)
        _by_blocks(matrix, zeros, layer.block, Tensor.sub_)
    _by_blocks(matrix, scales.view(grid), layer.block, Tensor.mul_)
    if layer.divisor != 1:
        matrix.mul_(BNB_UNIT)
    return values


def _by_blocks(matrix: Tensor, parts: Tensor, block: tuple[int, int], change: Change) -> None:
    """Change each block of `matrix` by its part, in place; blocks at the edges may be cut."""
    rows, columns = block
    if rows == 1 and matrix.shape[1] % columns == 0:
        change(matrix.view(len(matrix), -1, columns), parts[:, :, None])
        return
    for i, part in enumerate(parts):
        wide = part.repeat_interleave(columns)[: matrix.shape[1]]
        change(matrix[i * rows : (i + 1) * rows], wide)


@dequantised.register
def _compressed(layer: CompressedLayer, read: Read) -> Tensor:
    rows, columns = layer.shape
    values = _unpacked(read(layer.parts["words"]), layer.bits)[:, :columns].float()
    scales = _finite(layer, "scale", read).view(rows, -1)
    if "zero" not in layer.parts:
        values -= layer.zero
        return _grouped(layer, values, scales, None, read)
    zeros = read(layer.parts["zero"])
    if zeros.dtype == torch.int32:
        zeros = _unpacked(zeros.t(), layer.bits)[:, :rows].t()
    elif bool((zeros < -layer.zero).any()) or bool((zeros >= layer.zero).any()):
        _refuse(layer, "zero", f"holds zero points that {layer.bits} bits can't hold")
    else:
        zeros = zeros.float() + layer.zero
    return _grouped(layer, values, scales, zeros.float(), read)


@dequantised.register
def _awq(layer: AwqLayer, read: Read) -> Tensor:
    order = list(AWQ_ORDER)
    values, zeros = (
        _unpacked(read(layer.parts[role]), layer.bits).unflatten(1, (-1, 8))[:, :, order].flatten(1)
        for role in ("words", "zero")
    )
    scales = _finite(layer, "scale", read).t()
    return _grouped(layer, values.t().contiguous().float(), scales, zeros.t().float(), read)


@dequantised.register
def _gptq(layer: GptqLayer, read: Read) -> Tensor:
    values = _unpacked(read(layer.parts["words"]).t(), layer.bits).float()
    zeros = _unpacked(read(layer.parts["zero"]), layer.bits)[:, : layer.shape[0]].float()
    if layer.zero and bool((zeros == (1 << layer.bits) - 1).any()):
        # the first version stores zero points less one, and 0 wraps over its neighbours
        _refuse(layer, "zero", f"holds a zero point of {1 << layer.bits}, out of range")
    scales = _finite(layer, "scale", read).t()
    return _grouped(layer, values, scales, (zeros + layer.zero).t(), read)


def _grouped(
    layer: PackedLayer, values: Tensor, scales: Tensor, zeros: Tensor | None, read: Read
) -> Tensor:
    """(values - zeros) * scales, those two (rows, groups)."""
    groups = _groups(layer, scales.shape[1], read)
    values = values.contiguous()
    if groups is None and layer.group_size and values.shape[1] % layer.group_size == 0:
        block = (1, layer.group_size)
        if zeros is not None:
            _by_blocks(values, zeros, block, Tensor.sub_)
        _by_blocks(values, scales, block, Tensor.mul_)
        return values
    if groups is None:
        groups = torch.arange(values.shape[1], device=values.device) // (layer.group_size or 1)
    if zeros is not None:
        values -= zeros[:, groups]
    values *= scales[:, groups]
    return values


def _groups(layer: PackedLayer, num_groups: int, read: Read) -> Tensor | None:
    """The group of each column as stored; None if columns are in order."""
    if "g_idx" not in layer.parts:
        return None
    groups = read(layer.parts["g_idx"]).long()
    if isinstance(layer, CompressedLayer) and bool((groups == -1).all()):
        return torch.arange(len(groups), device=groups.device) // (len(groups) // num_groups)
    if bool((groups < 0).any()) or bool((groups >= num_groups).any()):
        _refuse(layer, "g_idx", f"names groups beyond the {num_groups} that have scales")
    return groups


@dequantised.register
def _table(layer: TableLayer, read: Read) -> Tensor:
    stored = read(layer.parts["weight"]).flatten().view(torch.uint8)
    table = _finite(layer, "table", read).flatten()
    both = torch.stack((table.repeat_interleave(16), table.repeat(16)), 1)  # the high nibble first
    values = both[stored.int()].flatten()[: math.prod(layer.shape)]
    if layer.nested_block:
        indices = read(layer.parts["scale"]).flatten().int()
        scales = _finite(layer, "nested_table", read).flatten()[indices]
        _times(scales, _finite(layer, "nested_scale", read).flatten(), layer.nested_block)
        scales += layer.offset
    else:
        scales = _finite(layer, "scale", read).flatten()
    _times(values, scales, layer.block)
    return values.view(layer.shape)


def _times(values: Tensor, scales: Tensor, block: int) -> None:
    """Multiply each `block` of values by its scale, in place; the last one may be shorter."""
    whole = len(values) // block
    values[: whole * block].view(whole, block).mul_(scales[:whole, None])
    values[whole * block :].mul_(scales[whole:])


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """The unsigned `bits` of each int32 of (rows, words), low ones first: uint8 (rows, values)."""
    packed = words.reshape(-1).view(torch.uint8).view(len(words), -1)  # little-endian
    if bits == 8:
        return packed
    return torch.stack((packed & 15, packed >> 4), -1).flatten(1)


def _finite(layer: Layer, role: str, read: Read) -> Tensor:
    scales = read(layer.parts[role]).float()
    if not bool(scales.isfinite().all()):
        _refuse(layer, role, "holds scales that are not finite")
    return scales


def _refuse(layer: Layer, role: str, why: str) -> None:
    raise EngineFailed(
        f"tensor {layer.parts[role]} ({layer.method}) {why}: fetch the checkpoint again"
    )
