"""Writes one adapter of FLUX in the formats of several trainers: diffusers, PEFT, kohya, XLabs,
ai-toolkit. Fused layers of FLUX's authors get block-diagonal halves, so all say the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.training.low_rank import Changes

Pair = tuple[Tensor, Tensor]
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
AUTHORS = {"double_blocks": DOUBLE, "single_blocks": SINGLE}
XLABS = {
    "double_blocks": {
        "qkv_lora1": DOUBLE["img_attn.qkv"],
        "qkv_lora2": DOUBLE["txt_attn.qkv"],
        "proj_lora1": DOUBLE["img_attn.proj"],
        "proj_lora2": DOUBLE["txt_attn.proj"],
    },
    "single_blocks": {"qkv_lora": SINGLE["linear1"][:3], "proj_lora": SINGLE["linear2"]},
}
BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def diffusers(changes: Changes, folder: Path) -> None:
    """`save_lora_weights` of diffusers, before it wrote a config into the header."""
    _save(_halves(changes, "transformer."), folder / "pytorch_lora_weights.safetensors")


def ai_toolkit(changes: Changes, folder: Path) -> None:
    """ai-toolkit's: diffusers' names, with the job's name for a file."""
    header = {"format": "pt", "name": "my_first_lora_v1", "version": "1.0"}
    _save(_halves(changes, "transformer."), folder / "my_first_lora_v1.safetensors", header)


def peft(changes: Changes, folder: Path) -> None:
    """A folder of PEFT's `save_pretrained`, whose alpha is twice the rank."""
    halved = {path: (down, up / 2) for path, (down, up) in changes.items()}
    _save(_halves(halved, "base_model.model."), folder / "adapter_model.safetensors")
    (rank,) = {len(down) for down, _ in changes.values()}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
              "target_modules": sorted(changes)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def kohya(changes: Changes, folder: Path) -> None:
    """sd-scripts' names, fused layers, and an alpha of half the rank beside each."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in _fused(changes, AUTHORS):
        name = "lora_unet_" + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = 2 * up
        tensors[f"{name}.alpha"] = torch.tensor(len(down) / 2)
    _save(tensors, folder / "style.safetensors")


def xlabs(changes: Changes, folder: Path) -> None:
    """XLabs' processors: attention and the single blocks' way out, nothing else."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in _fused(changes, XLABS):
        block, _, name = path.rpartition(".")
        tensors[f"{block}.processor.{name}.down.weight"] = down
        tensors[f"{block}.processor.{name}.up.weight"] = up
    _save(tensors, folder / "lora.safetensors")


WRITERS: Mapping[str, Callable[[Changes, Path], None]] = {
    "diffusers": diffusers,
    "PEFT": peft,
    "kohya": kohya,
    "XLabs": xlabs,
    "ai-toolkit": ai_toolkit,
}


def held_by_xlabs(changes: Changes) -> Changes:
    """The part of an adapter that XLabs' format can hold."""
    held: dict[str, Pair] = {}
    for theirs, ours in BLOCKS.items():
        ends = {end for layers in XLABS[theirs].values() for end in layers}
        for path, pair in changes.items():
            block, _, end = path.split(".", 2)
            if block == ours and end in ends:
                held[path] = pair
    return held


def _halves(changes: Changes, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for path, (down, up) in changes.items():
        tensors[f"{prefix}{path}.lora_A.weight"] = down
        tensors[f"{prefix}{path}.lora_B.weight"] = up
    return tensors


def _fused(
    changes: Changes, layers: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> list[tuple[str, Pair]]:
    """The authors' layers, each of the changes of diffusers' linears that it is made of."""
    found = []
    for theirs, ours in BLOCKS.items():
        numbers = {path.split(".")[1] for path in changes if path.startswith(f"{ours}.")}
        for number in sorted(numbers):
            for layer, parts in layers[theirs].items():
                pairs = [changes.get(f"{ours}.{number}.{part}") for part in parts]
                if all(pair is not None for pair in pairs):
                    joined = _joined([pair for pair in pairs if pair is not None])
                    found.append((f"{theirs}.{number}.{layer}", joined))
    return found


def _joined(pairs: list[Pair]) -> Pair:
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.block_diag(*ups)


def _save(tensors: dict[str, Tensor], file: Path, header: dict[str, str] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, file, header)
