"""Layers of 4-bit or 8-bit integers in int32 words: compressed-tensors' `pack-quantized`, AWQ and
GPTQ. Imports no torch.

The layouts are those of compressed-tensors' `pack_to_int32`, AutoAWQ's `WQLinear_GEMM` and
AutoGPTQ's `QuantLinear.pack`.
"""

from __future__ import annotations

import math

from predictors.compute.checkpoint.accounting import FLOATS
from predictors.compute.checkpoint.quantised.config import COMPRESSED, NamedQuantisation
from predictors.compute.checkpoint.quantised.layers import AwqLayer, CompressedLayer, GptqLayer
from predictors.compute.checkpoint.quantised.parts import Parts

WORD = frozenset({"I32"})
AWQ_VALUES = 8  # in a word


def find_compressed(
    parts: Parts, named: NamedQuantisation | None, stem: str
) -> CompressedLayer | None:
    """The layer that compressed-tensors packed as `stem`.weight_packed; None for other packings."""
    name, method = f"{stem}.weight", f"{COMPRESSED} packed"
    words = f"{name}_packed"
    if name in parts or parts.header(words).dtype not in WORD:
        return None  # NVFP4 and its kin have bytes
    if named is None:
        raise parts.refusal(method, words, "no config names it: quantization_config is missing")
    lengths = parts.need(method, f"{name}_shape")
    rows, columns = parts.read_shape(method, lengths)
    stored = parts.matrix(method, words)
    bits = next((b for b in (4, 8) if stored == (rows, -(-columns * b // 32))), 0)
    if not bits:
        why = f"its shape {list(stored)} does not hold {[rows, columns]} in 4 or 8 bits"
        raise parts.refusal(method, words, why)
    scale = parts.need_dtype(method, f"{name}_scale", FLOATS)
    groups = _compressed_groups(parts, method, scale, rows)
    size: int | None = parts.group_size(method, scale, columns, groups)
    tensors = {"words": words, "scale": scale}
    _check_scheme(parts, named, scale, bits, size, groups)
    if zeros := parts.optional(f"{name}_zero_point"):
        is_packed = parts.header(zeros).dtype in WORD
        parts.need_dtype(method, zeros, WORD | {"I8"})
        parts.check_shape(method, zeros, (-(-rows * bits // 32) if is_packed else rows, groups))
        tensors["zero"] = zeros
    elif named.schemes and not any(s.is_symmetric for s in named.schemes if s.bits == bits):
        parts.need(method, f"{name}_zero_point")
    if order := parts.optional(f"{name}_g_idx"):
        tensors["g_idx"], size = _check_order(parts, method, order, columns), None
    inputs = parts.inputs(stem)
    return CompressedLayer(
        name=name,
        shape=(rows, columns),
        method=f"{method} int{bits}",
        owners=(COMPRESSED,),
        parts=tensors,
        unread=(lengths, *inputs),
        narrows_inputs=bool(inputs),
        bits=bits,
        group_size=size,
        zero=1 << (bits - 1),
    )


def _compressed_groups(parts: Parts, method: str, scale: str, rows: int) -> int:
    shape = parts.header(scale).shape
    if shape == (rows,):
        return 1
    if len(shape) != 2 or shape[0] != rows or not shape[1]:
        raise parts.refusal(method, scale, f"its shape {list(shape)} does not fit to {rows} rows")
    return shape[1]


def _check_scheme(
    parts: Parts, named: NamedQuantisation, scale: str, bits: int, size: int | None, groups: int
) -> None:
    fitting = [
        scheme
        for scheme in named.schemes
        if not scheme.is_float and scheme.bits == bits and scheme.group_size in (None, size)
        if scheme.strategy == "group" or groups == 1
    ]
    if named.schemes and not fitting:
        why = f"its config's config_groups have no int{bits} in groups of {size}"
        raise parts.refusal(named.name, scale, why)


def _check_order(parts: Parts, method: str, order: str, columns: int) -> str:
    parts.need_dtype(method, order, {"I32", "I64"})
    parts.check_shape(method, order, (columns,))
    return order


def find_transposed(
    parts: Parts, named: NamedQuantisation | None, stem: str
) -> AwqLayer | GptqLayer | None:
    """The layer that AWQ or GPTQ stores as `stem`.qweight; None for other methods with that name.
    The shapes of words and scales tell the two apart."""
    words = f"{stem}.qweight"
    if f"{stem}.weight" in parts or f"{stem}.wscales" in parts:
        return None  # SVDQuant has `wscales`
    method = "GPTQ" if f"{stem}.g_idx" in parts else "AWQ"
    if named is not None and named.method in ("awq", "gptq"):
        method = named.name
    parts.need_dtype(method, words, WORD)
    scales = parts.need_dtype(method, f"{stem}.scales", FLOATS)
    zeros = parts.need_dtype(method, f"{stem}.qzeros", WORD)
    rows, columns = parts.matrix(method, words)
    groups, out = parts.matrix(method, scales)
    tensors = {"words": words, "scale": scales, "zero": zeros}
    if columns == out:
        return _gptq(parts, named, stem, tensors, rows)
    if columns * AWQ_VALUES != out or f"{stem}.g_idx" in parts:
        why = f"its shape {[rows, columns]} does not fit to scales {[groups, out]}"
        raise parts.refusal(method, words, why)
    parts.check_shape(method, zeros, (groups, columns))
    size = parts.group_size(method, scales, rows, groups)
    said = named.group_size if named else None
    if said is not None and said not in (size, -1 if groups == 1 else size):
        raise parts.refusal(method, scales, f"its groups have {size} columns, in its config {said}")
    return AwqLayer(
        name=f"{stem}.weight",
        shape=(out, rows),
        method="AWQ 4-bit",
        owners=("awq",),
        parts=tensors,
        bits=4,
        group_size=size,
    )


def _gptq(
    parts: Parts,
    named: NamedQuantisation | None,
    stem: str,
    tensors: dict[str, str],
    rows: int,
) -> GptqLayer:
    if named is None or named.method != "gptq":
        why = "no config says in which version of its format: quantize_config.json is missing"
        said = f"its config names {named.name}" if named else why
        raise parts.refusal("GPTQ", tensors["words"], said)
    order, bits = parts.optional(f"{stem}.g_idx"), named.bits or 4
    if order:  # single layers may have other bits than the config says
        length = math.prod(parts.header(order).shape)
        bits = next((b for b in (4, 8) if rows * 32 == length * b), bits)
    method, columns = f"GPTQ {bits}-bit", rows * 32 // bits
    groups, out = parts.matrix(method, tensors["scale"])
    parts.check_shape(method, tensors["zero"], (groups, -(-out * bits // 32)))
    size: int | None = None
    if order:
        tensors["g_idx"] = _check_order(parts, method, order, columns)
    elif named.is_reordered:
        parts.need(method, f"{stem}.g_idx")  # `desc_act`
    else:
        size = named.group_size or -(-columns // groups)
        size = columns if size < 0 else size
        if -(-columns // size) != groups:
            why = f"{columns} columns in groups of {size} are not {groups} groups"
            raise parts.refusal(method, tensors["scale"], why)
    return GptqLayer(
        name=f"{stem}.weight",
        shape=(out, columns),
        method=method,
        owners=("gptq",),
        parts=tensors,
        bits=bits,
        group_size=size,
        zero=0 if named.is_v2 else 1,
    )
