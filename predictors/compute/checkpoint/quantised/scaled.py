"""Layers of float8 or int8 values beside scales: compressed-tensors, `fp8` in blocks or as a whole,
ComfyUI's, and bitsandbytes int8. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from predictors.compute.checkpoint.accounting import FLOATS
from predictors.compute.checkpoint.quantised.config import COMPRESSED, NamedQuantisation, Scheme
from predictors.compute.checkpoint.quantised.layers import ScaledLayer
from predictors.compute.checkpoint.quantised.parts import FLOAT8, NARROW, Parts

SCALES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "weight_scale": (COMPRESSED, (COMPRESSED, "fp8")),
    "weight_scale_inv": ("FP8 in blocks", ("fp8",)),
    "scale_weight": ("scaled FP8, as ComfyUI stores it", ()),
    "SCB": ("bitsandbytes int8", ("bitsandbytes",)),
}
"""Tensors that a weight is multiplied by: who stores it so, and methods that a config may name."""
BLOCK = (128, 128)
"""Of `weight_scale_inv`, if no config says otherwise."""
POWER = "F8_E8M0"  # a power of two
COMFY = "comfy_quant"  # a JSON text beside the weight
COMFY_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def find_scaled(parts: Parts, named: NamedQuantisation | None, stem: str) -> ScaledLayer | None:
    """The layer whose weight is `stem`.weight, if that is narrow and has scales."""
    name = f"{stem}.weight"
    header = parts.header(name)
    found = [leaf for leaf in SCALES if f"{stem}.{leaf}" in parts]
    if header.dtype not in NARROW or not found or not math.prod(header.shape):
        return None
    leaf, scale = found[0], f"{stem}.{found[0]}"
    method = _method(leaf, header.dtype, named)
    if len(found) > 1:
        raise parts.refusal(method, f"{stem}.{found[1]}", f"{scale} scales the same weight")
    is_block = leaf == "weight_scale_inv"
    parts.need_dtype(method, scale, FLOATS | {POWER} if is_block else FLOATS)
    block = _block(parts, named, method, stem, leaf)
    tensors = {"weight": name, "scale": scale}
    if zeros := parts.optional(f"{stem}.weight_zero_point"):
        parts.need_dtype(method, zeros, {header.dtype, "I8"})
        parts.check_shape(method, zeros, parts.header(scale).shape)
        tensors["zero"] = zeros
    _check_scheme(parts, named, method, tensors, block)
    inputs = parts.inputs(stem)
    return ScaledLayer(
        name=name,
        shape=header.shape,
        method=method,
        owners=SCALES[leaf][1],
        parts=tensors,
        unread=inputs + _markers(parts, method, stem, leaf),
        narrows_inputs=bool(inputs) or leaf == "SCB",
        block=block,
        divisor=127 if leaf == "SCB" else 1,
    )


def _method(leaf: str, dtype: str, named: NamedQuantisation | None) -> str:
    method, owners = SCALES[leaf]
    if named is not None and named.method in owners and named.method != COMPRESSED:
        return named.name
    kind = "FP8" if dtype in FLOAT8 else "int8"
    return f"{method} {kind}" if method == COMPRESSED else method


def _block(
    parts: Parts, named: NamedQuantisation | None, method: str, stem: str, leaf: str
) -> tuple[int, int]:
    """Rows and columns of the weight that one scale is for."""
    weight, scale = f"{stem}.weight", f"{stem}.{leaf}"
    shape, found = parts.header(weight).shape, parts.header(scale).shape
    rows, columns = (shape or (1,))[0], math.prod(shape[1:])
    if leaf == "SCB":
        parts.need_dtype(method, weight, {"I8"})
        parts.check_shape(method, scale, (rows,))
        return 1, columns
    if leaf in ("scale_weight", "weight_scale_inv"):  # int8 beside the latter is packed FP4
        parts.need_dtype(method, weight, FLOAT8)
    if leaf == "scale_weight":
        parts.check_length(method, scale, 1)
    if math.prod(found) == 1:
        return rows, columns
    if found and found[0] == rows == math.prod(found) and leaf == "weight_scale":
        return 1, columns
    for block in _blocks(named, leaf, columns):
        if len(shape) == 2 and found == (-(-rows // block[0]), -(-columns // block[1])):
            return block
    raise parts.refusal(
        method, scale, f"its shape {list(found)} does not fit to a weight of {list(shape)}"
    )


def _blocks(named: NamedQuantisation | None, leaf: str, columns: int) -> list[tuple[int, int]]:
    """Blocks of several scales per row that are possible, as far as known."""
    if leaf == "weight_scale_inv":
        return [(named.block if named else None) or BLOCK]
    schemes = named.schemes if named else ()
    blocks = [scheme.block for scheme in schemes if scheme.block]
    blocks += [named.block] if named and named.block else []
    sizes = [s.group_size for s in schemes if s.group_size and columns % s.group_size == 0]
    return [*blocks, *((1, size) for size in sizes)]


def _check_scheme(
    parts: Parts,
    named: NamedQuantisation | None,
    method: str,
    tensors: Mapping[str, str],
    block: tuple[int, int],
) -> None:
    """A config with groups must have one that stores weights so."""
    if named is None or not named.schemes:
        return
    is_float = parts.header(tensors["weight"]).dtype in FLOAT8
    kind = [scheme for scheme in named.schemes if scheme.is_float == is_float]
    if not any(_fits(scheme, parts, tensors, block) for scheme in kind):
        raise parts.refusal(
            method, tensors["scale"], "its config's config_groups have no such weights"
        )
    if "zero" not in tensors and not any(scheme.is_symmetric for scheme in kind):
        stem = tensors["weight"].removesuffix(".weight")
        parts.need(method, f"{stem}.weight_zero_point")


def _fits(scheme: Scheme, parts: Parts, tensors: Mapping[str, str], block: tuple[int, int]) -> bool:
    is_whole = math.prod(parts.header(tensors["scale"]).shape) == 1
    if scheme.strategy == "tensor":
        return is_whole
    if scheme.strategy == "channel":
        return block[0] == 1 or is_whole
    return block == scheme.block or block == (1, scheme.group_size) or is_whole


def _markers(parts: Parts, method: str, stem: str, leaf: str) -> tuple[str, ...]:
    """Stored names that only say how the weight is stored."""
    found: tuple[str, ...] = ()
    if leaf == "SCB" and (row := parts.optional(f"{stem}.weight_format")):
        parts.check_length(method, row, 1)
        found += (row,)
    if text := parts.optional(f"{stem}.{COMFY}"):
        style = parts.read_object(method, text).get("format")
        dtype = parts.header(f"{stem}.weight").dtype
        if not isinstance(style, str) or COMFY_FORMATS.get(style) != dtype:
            raise parts.refusal(
                method, text, f"its format {style!a:.40} over {dtype} is not served"
            )
        found += (text,)
    return found
