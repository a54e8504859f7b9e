"""Writes layers as the owners of each method do, and gives the weights that they stand for.

compressed-tensors writes its own. AWQ, GPTQ and bitsandbytes are written here: AWQ after AutoAWQ's
`WQLinear_GEMM.from_linear` (casper-hansen/AutoAWQ, awq/modules/linear/gemm.py), GPTQ after
AutoGPTQ's `QuantLinear.pack` (AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py).
Tests compare both with words spelt by hand, and bitsandbytes' writer with bytes that bitsandbytes
wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "bitsandbytes.safetensors"
Tensors = dict[str, Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Written(NamedTuple):
    """A layer as stored, by leaf, and the float32 weight that its owner makes of it."""

    stored: Tensors
    weight: Tensor


@dataclass(frozen=True)
class Method:
    """A way to store a weight, and the `quantization_config` that says so."""

    name: str
    write: Callable[[Tensor], Written]
    config: dict[str, Any] | None


# -- compressed-tensors ----------------------------------------------------------------------------
def compressed(style: str, *, inputs: str = "", **args: Any) -> Method:
    """A method whose layers compressed-tensors packs and unpacks itself."""
    weights = QuantizationArgs(**args)
    activations = QuantizationArgs(num_bits=8, type="float", strategy="tensor") if inputs else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    compressor = BaseCompressor.get_value_from_registry(style)

    def write(weight: Tensor) -> Written:
        scale, zero = _ranges(weight, weights)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        stored = compressor.compress(state, scheme)
        back = compressor.decompress(dict(stored), scheme)["weight"]
        if inputs:
            stored["input_scale"] = torch.tensor([0.125])
        return Written(stored, back)

    group = {"targets": ["Linear"], "weights": weights.model_dump(mode="json")}
    if activations is not None:
        group["input_activations"] = activations.model_dump(mode="json")
    config = {
        "quant_method": "compressed-tensors",
        "format": style,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return Method(style, write, config)


def _ranges(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """The library's scales and zero points for the smallest and largest value of each part."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        parts = weight.reshape(1, 1, -1)
    elif args.strategy == "block":
        height, width = args.block_structure or (1, 1)
        down, across = -(-rows // height), -(-columns // width)
        padded = torch.zeros(down * height, across * width)
        padded[:rows, :columns] = weight
        parts = padded.view(down, height, across, width).transpose(1, 2).flatten(2)
    else:
        parts = weight.view(rows, -1, args.group_size if args.strategy == "group" else columns)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    if args.strategy == "tensor":
        scale, zero = scale.view(1), zero.view(1)
    return scale, zero


# -- fp8 with a scale per block, and ComfyUI's -----------------------------------------------------
def fp8_in_blocks(weight: Tensor) -> Written:
    """As Qwen's own FP8 releases: 128 x 128, cut at the edges."""
    narrow, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), {}
    back = torch.empty(weight.shape)
    for row in range(0, weight.shape[0], 128):
        for column in range(0, weight.shape[1], 128):
            block = weight[row : row + 128, column : column + 128]
            scale = block.abs().amax() / 448
            values = (block / scale).to(torch.float8_e4m3fn)
            narrow[row : row + 128, column : column + 128] = values
            back[row : row + 128, column : column + 128] = values.float() * scale
            scales[row // 128, column // 128] = scale
    down, across = (max(place[i] for place in scales) + 1 for i in (0, 1))
    grid = torch.tensor([[scales[i, j] for j in range(across)] for i in range(down)])
    return Written({"weight": narrow, "weight_scale_inv": grid}, back)


def comfy(weight: Tensor) -> Written:
    scale = weight.abs().amax() / 448
    narrow = (weight / scale).to(torch.float8_e4m3fn)
    stored = {"weight": narrow, "scale_weight": scale, "scale_input": torch.tensor(0.5)}
    return Written(stored, narrow.float() * scale)


# -- AWQ and GPTQ ----------------------------------------------------------------------------------
def awq_words(values: Tensor) -> Tensor:
    """(rows, columns) in 0 .. 15 as int32 (rows, columns / 8)."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for i, place in enumerate(AWQ_ORDER):
        words |= values[:, place::8].long() << (4 * i)
    return _as_int32(words)


def words_in_order(values: Tensor, bits: int) -> Tensor:
    """(rows, columns) as int32 (rows, columns * bits / 32), low bits first."""
    each = 32 // bits
    words = torch.zeros(values.shape[0], values.shape[1] // each, dtype=torch.int64)
    for i in range(each):
        words |= values[:, i::each].long() << (bits * i)
    return _as_int32(words)


def _as_int32(words: Tensor) -> Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _integers(weight: Tensor, bits: int, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values (out, in), zero points and float16 scales (out, groups), and the weight they make."""
    count = int(groups.max()) + 1
    most = (1 << bits) - 1
    scales = torch.empty(weight.shape[0], count, dtype=torch.float16)
    zeros = torch.empty(weight.shape[0], count)
    for group in range(count):
        part = weight[:, groups == group]
        low, high = part.amin(1).clamp(max=-1e-3), part.amax(1).clamp(min=1e-3)
        scales[:, group] = ((high - low) / most).half()
        zeros[:, group] = (-low / scales[:, group].float()).round().clamp(1, most)
    wide, offset = scales.float()[:, groups], zeros[:, groups]
    values = ((weight / wide).round() + offset).clamp(0, most)
    return values.int(), zeros.int(), scales, (values - offset) * wide


def awq(group: int) -> Method:
    def write(weight: Tensor) -> Written:
        groups = torch.arange(weight.shape[1]) // group
        values, zeros, scales, back = _integers(weight, 4, groups)
        stored = {
            "qweight": awq_words(values.t()),
            "qzeros": awq_words(zeros.t()),
            "scales": scales.t().contiguous(),
        }
        return Written(stored, back)

    return Method(
        "AWQ",
        write,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": ["visual"],
        },
    )


def gptq(bits: int, group: int, *, reordered: bool = False, v2: bool = False) -> Method:
    def write(weight: Tensor) -> Written:
        groups = torch.arange(weight.shape[1]) // group
        if reordered:
            groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]
        values, zeros, scales, back = _integers(weight, bits, groups)
        stored = {
            "qweight": words_in_order(values, bits).t().contiguous(),
            "qzeros": words_in_order((zeros - (0 if v2 else 1)).t(), bits),
            "scales": scales.t().contiguous(),
            "g_idx": groups.int(),
        }
        return Written(stored, back)

    return Method(
        f"GPTQ {bits}-bit",
        write,
        {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": reordered,
            "sym": False,
            "checkpoint_format": "gptq_v2" if v2 else "gptq",
        },
    )


# -- bitsandbytes ----------------------------------------------------------------------------------
def in_four_bits(kind: str, *, nested: bool) -> Method:
    tables = load_file(GOLDEN)
    table = tables[f"{kind}.weight.quant_map"]
    wide_table = tables["nested.weight.nested_quant_map"]

    def write(weight: Tensor) -> Written:
        blocks = torch.zeros(-(-weight.numel() // 64) * 64)
        blocks[: weight.numel()] = weight.flatten()
        blocks = blocks.view(-1, 64)
        largest = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "float32"}
        state["shape"] = list(weight.shape)
        stored = {"weight.quant_map": table, "weight.absmax": largest}
        codes = _nearest(table, blocks / largest[:, None]).flatten()[: weight.numel()]
        if nested:
            offset = float(largest.mean())
            indices, inner = _in_table(wide_table, largest - offset, 256)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            stored |= {
                "weight.absmax": indices.to(torch.uint8),
                "weight.nested_absmax": inner,
                "weight.nested_quant_map": wide_table,
            }
            spread = inner.repeat_interleave(256)[: len(indices)]
            largest = wide_table[indices] * spread + offset
        back = table[codes] * largest.repeat_interleave(64)[: weight.numel()]
        codes = torch.nn.functional.pad(codes, (0, len(codes) % 2), value=7)  # nf4's zero
        stored["weight"] = (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return Written(
            stored | {f"weight.quant_state.bitsandbytes__{kind}": text}, back.view(weight.shape)
        )

    return Method(
        f"bitsandbytes {kind}",
        write,
        {
            "quant_method": "bitsandbytes",
            "_load_in_4bit": True,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested,
            "llm_int8_skip_modules": None,
        },
    )


def _in_table(table: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Indices of the nearest of `table`, and the largest magnitude of each block of values."""
    largest = torch.stack([part.abs().amax() for part in values.split(block)])
    return _nearest(table, values / largest.repeat_interleave(block)[: len(values)]), largest


def _nearest(table: Tensor, values: Tensor) -> Tensor:
    return (values[..., None] - table).abs().argmin(-1)


def in_eight_bits(weight: Tensor) -> Written:
    scales = weight.abs().amax(1)
    narrow = (weight * (127 / scales[:, None])).round().to(torch.int8)
    stored = {"weight": narrow, "SCB": scales, "weight_format": torch.zeros((), dtype=torch.uint8)}
    return Written(stored, narrow * scales[:, None] * 7.874015718698502e-3)


METHODS: dict[str, Method] = {
    "fp8 per channel": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "fp8 per tensor, static inputs": compressed(
        "float-quantized", num_bits=8, type="float", strategy="tensor", inputs="static"
    ),
    "fp8 in blocks of compressed-tensors": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[64, 48]
    ),
    "int8 per channel": compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    "int8 with zero points": compressed(
        "naive-quantized", num_bits=8, type="int", strategy="channel", symmetric=False
    ),
    "packed int4 in groups": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=32
    ),
    "packed int4 with zero points": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=64, symmetric=False
    ),
    "packed int4 per channel": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="channel"
    ),
    "packed int8": compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
    "fp8 in blocks of 128": Method(
        "FP8",
        fp8_in_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    ),
    "fp8 as ComfyUI stores it": Method("ComfyUI", comfy, None),
    "AWQ": awq(64),
    "GPTQ 4-bit": gptq(4, 32),
    "GPTQ 4-bit, reordered": gptq(4, 32, reordered=True),
    "GPTQ 4-bit, second version": gptq(4, 64, v2=True),
    "GPTQ 8-bit": gptq(8, 64),
    "nf4": in_four_bits("nf4", nested=False),
    "nf4, nested": in_four_bits("nf4", nested=True),
    "fp4": in_four_bits("fp4", nested=False),
    "int8 of bitsandbytes": Method(
        "bitsandbytes int8",
        in_eight_bits,
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
    ),
}
"""Every method that is served, by what is special about it."""
