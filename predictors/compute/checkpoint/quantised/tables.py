"""Layers that bitsandbytes stores in 4 bits, nf4 or fp4. Imports no torch."""

from __future__ import annotations

import math

from predictors.compute.checkpoint.accounting import FLOATS
from predictors.compute.checkpoint.quantised.layers import TableLayer
from predictors.compute.checkpoint.quantised.parts import Parts, is_count, is_shape

METHOD = "bitsandbytes 4-bit"
BYTES = frozenset({"U8", "I8"})
STORAGE = BYTES | (FLOATS - {"F64"})
"""Dtypes that packed values may be stored as: `bnb_4bit_quant_storage`."""
VALUES, NESTED_VALUES = 16, 256  # of the tables


def find_table(parts: Parts, stem: str) -> TableLayer | None:
    """The layer whose packed values are `stem`.weight, beside `stem`.weight.absmax."""
    name = f"{stem}.weight"
    if name not in parts or parts.header(name).dtype not in STORAGE:
        return None
    kinds = [k for k in ("nf4", "fp4") if _state(name, k) in parts]
    if not kinds and parts.header(name).dtype not in BYTES:
        return None
    state = parts.need(METHOD, _state(name, kinds[0] if kinds else "nf4"))
    said = parts.read_object(METHOD, state)
    shape, block = said.get("shape"), said.get("blocksize")
    if not isinstance(shape, list) or not is_shape(shape):
        raise parts.refusal(METHOD, state, "it holds no shape")
    if not isinstance(block, int) or not is_count(block):
        raise parts.refusal(METHOD, state, "it holds no blocksize")
    num_values, num_bytes = math.prod(shape), parts.stored[name].num_bytes
    if num_bytes != (num_values + 1) // 2:
        raise parts.refusal(METHOD, name, f"its {num_bytes} bytes do not hold {shape} in 4 bits")
    num_blocks = -(-num_values // block)
    nested = parts.optional(f"{name}.nested_absmax")
    tensors = {
        "weight": name,
        "scale": parts.need_dtype(METHOD, f"{name}.absmax", {"U8"} if nested else {"F32"}),
        "table": parts.need_dtype(METHOD, f"{name}.quant_map", {"F32"}),
    }
    parts.check_length(METHOD, tensors["scale"], num_blocks)
    parts.check_length(METHOD, tensors["table"], VALUES)
    nested_block, offset = 0, 0.0
    if nested is not None:
        nested_block, offset = _nested(parts, state, said)
        table = f"{name}.nested_quant_map"
        tensors |= {
            "nested_scale": parts.need_dtype(METHOD, nested, {"F32"}),
            "nested_table": parts.need_dtype(METHOD, table, {"F32"}),
        }
        parts.check_length(METHOD, nested, -(-num_blocks // nested_block))
        parts.check_length(METHOD, table, NESTED_VALUES)
    return TableLayer(
        name=name,
        shape=tuple(shape),
        method=f"bitsandbytes {kinds[0]}",
        owners=("bitsandbytes",),
        parts=tensors,
        unread=(state,),
        block=block,
        nested_block=nested_block,
        offset=offset,
    )


def _state(name: str, kind: str) -> str:
    return f"{name}.quant_state.bitsandbytes__{kind}"


def _nested(parts: Parts, state: str, said: dict[str, object]) -> tuple[int, float]:
    block, offset = said.get("nested_blocksize"), said.get("nested_offset")
    if not isinstance(block, int) or not is_count(block):
        raise parts.refusal(METHOD, state, "it holds no nested_blocksize")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise parts.refusal(METHOD, state, "it holds no nested_offset")
    return block, float(offset)
