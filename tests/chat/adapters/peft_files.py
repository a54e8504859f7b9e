"""Writes small random adapters as PEFT saves them, and merges them into transformers' model by
hand, W + scale B A.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from predictors.chat.tensors import Shapes

NEW = "base_model.model.model."
"""PEFT's prefix and that of transformers since 4.52."""


def of_newest(linear: str) -> str:
    """The module of a linear's hub name as transformers has it now."""
    inner = "visual." if linear.startswith("visual.") else "language_model."
    return f"model.{inner}{linear.removeprefix('visual.').removeprefix('model.')}"


def of_newest_file(linear: str) -> str:
    """The same as PEFT stores it."""
    return f"base_model.model.{of_newest(linear)}"


def write_adapter(
    folder: Path,
    linears: Shapes,
    seed: int,
    *,
    rank: int = 4,
    strength: float = 1.0,
    spelt: Callable[[str], str] = of_newest_file,
    **config: Any,
) -> Path:
    """An adapter of these linears, whose change has about `strength` times the size of a usual
    weight; `spelt` gives a module's stored name."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for linear, shape in linears.items():
        ones = (1,) * (len(shape) - 2)
        inputs = math.prod(shape[1:])
        down = torch.randn((rank, *shape[1:]), generator=generator) * (strength / inputs) ** 0.5
        up = torch.randn((shape[0], rank, *ones), generator=generator) * (strength / rank) ** 0.5
        tensors[f"{spelt(linear)}.lora_A.weight"] = down
        tensors[f"{spelt(linear)}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_config(folder, r=rank, **config)
    return folder


def write_config(folder: Path, **config: Any) -> None:
    """As PEFT writes it, with these values."""
    whole = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
        "auto_mapping": None, "base_model_name_or_path": "/home/somebody/qwen", "bias": "none",
        "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False,
        "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core",
        "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.18.0",
        "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None,
        "target_modules": ["q_proj", "v_proj"], "target_parameters": None,
        "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False,
        **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(whole, indent=2))


@contextmanager
def merged(model: nn.Module, adapters: Iterable[tuple[Path, float]]) -> Iterator[None]:
    """transformers' model with these adapters of `write_adapter` merged, each times a scale."""
    modules = dict(model.named_modules())
    kept: dict[nn.Parameter, Tensor] = {}
    with torch.no_grad():
        for folder, scale in adapters:
            config = json.loads((folder / "adapter_config.json").read_text())
            tensors = load_file(folder / "adapter_model.safetensors")
            for name, change in changes(tensors, config).items():
                weight = modules[name].weight
                assert isinstance(weight, nn.Parameter)
                kept.setdefault(weight, weight.clone())
                weight += scale * change.view(weight.shape)
        yield
        for weight, before in kept.items():
            weight.copy_(before)


def changes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """scale B A by module of transformers, as float64 arithmetic gives it."""
    root = math.sqrt if config["use_rslora"] else float
    found = {}
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        up = tensors[name.replace(".lora_A.", ".lora_B.")]
        product = up.flatten(1).double() @ down.flatten(1).double()
        module = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
        found[module] = (product * config["lora_alpha"] / root(len(down))).float()
    return found
