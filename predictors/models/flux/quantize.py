"""Writes a copy of a FLUX.1 checkpoint whose transformer blocks are stored in fp8.

It has half the bytes to read at each start, and nothing to quantise. The layout is
compressed-tensors' for per-feature weights and per-token activations (its scheme FP8_DYNAMIC):
beside each e4m3 `weight` a float32 `weight_scale` (features, 1).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from predictors.compute.checkpoint.integrity import HUB_RECORDS, MANIFEST
from predictors.compute.checkpoint.quantised.source import PlainTensors
from predictors.compute.checkpoint.writing import check_new, new_folder
from predictors.compute.kernels.fp8 import Fp8Linear, quantize_rows
from predictors.errors import InvalidRequest
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.folder import FP8_FORMAT
from predictors.models.flux.modules.transformer import Shape, Transformer, quantized
from predictors.models.flux.weights import transformer_names

WEIGHTS = "diffusion_pytorch_model.safetensors"
PART = "transformer"
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": FP8_FORMAT,
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip


def quantize_checkpoint(source: Path, target: Path, variant: str = "") -> int:
    """Copy the folder `source` to a new folder `target` with its transformer in fp8; `variant` is
    the wanted one of the weights files.

    Returns the bytes of the new weights, which are all held in memory. Raises `InvalidRequest` if
    `target` exists or `source` is quantised, `EngineFailed` for broken weights and for a disk
    without room. `target` is complete or not there.
    """
    check_new(target)
    config, _ = read_checkpoint(source, variant=variant)
    if config.is_quantized:
        raise InvalidRequest(f"{source.name} is quantised already")
    with PlainTensors(source / PART, PART, variant) as stored:
        if method := stored.quantised.method:
            raise InvalidRequest(
                f"the transformer of {source.name} is quantised already ({method}); quantize takes "
                "unquantised weights"
            )
        tensors: dict[str, Tensor] = {}
        narrow = _narrow_names(config.shape)
        for name in stored:
            tensor = stored.read(name)
            if name in narrow:
                tensor, tensors[f"{name}_scale"] = quantize_rows(tensor)
            tensors[name] = tensor.contiguous()
    weights = shutil.ignore_patterns("*.safetensors", "*.safetensors.*", "*.bin")
    # digests of the source are none of the copy
    others = [e for e in source.iterdir() if e.name not in (PART, MANIFEST, HUB_RECORDS.parts[0])]
    with new_folder(target) as growing:
        (growing / PART).mkdir(parents=True)
        shutil.copytree(source / PART, growing / PART, ignore=weights, dirs_exist_ok=True)
        for entry in others:
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, growing / entry.name)
        stored_config = json.loads((source / PART / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(stored_config | {"quantization_config": CONFIG}, indent=2)
        (growing / PART / "config.json").write_text(text, encoding="utf-8")
        save_file(tensors, growing / PART / WEIGHTS)
    return sum(tensor.nbytes for tensor in tensors.values())


def _narrow_names(shape: Shape) -> set[str]:
    """Stored names of the weights that `transformer.quantized` replaces by fp8."""
    with torch.device("meta"):
        empty = quantized(Transformer(shape), keep=False)
    names = transformer_names(shape)
    return {
        stored
        for path, layer in empty.named_modules()
        if isinstance(layer, Fp8Linear)
        for stored in names[f"{path}.weight"]
    }
