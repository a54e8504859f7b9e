"""Low-rank adapters on modules of diffusers and transformers: made, written as PEFT names, fused.

The scale is 1 and alpha is the rank, so that a file needs no number beside its two matrices.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Changes = Mapping[str, tuple[Tensor, Tensor]]
"""By the path of a linear: down (rank, in_features) and up (out_features, rank)."""


class LowRankLinear(nn.Module):
    """A frozen linear and a trained product of two matrices beside it, which is 0 at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The linear's output and the product's."""
        wide: Tensor = self.base(x)
        return wide + F.linear(F.linear(x, self.down), self.up)


def attach(model: nn.Module, targets: str, rank: int, seed: int) -> dict[str, LowRankLinear]:
    """Freeze the model and put an adapter on each linear whose path matches `targets` in full."""
    torch.manual_seed(seed)
    model.requires_grad_(False)
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, path)
    ]
    adapters = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        adapters[path] = LowRankLinear(model.get_submodule(path), rank)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), name, adapters[path])
    return adapters


def trained(adapters: Mapping[str, LowRankLinear]) -> Changes:
    """The matrices of attached adapters."""
    return {path: (a.down.detach(), a.up.detach()) for path, a in adapters.items()}


def save(changes: Changes, file: Path, prefix: str, metadata: dict[str, object]) -> None:
    """Write the matrices in bf16 under PEFT's names, each behind `prefix`."""
    tensors = {}
    for path, (down, up) in changes.items():
        tensors[f"{prefix}{path}.lora_A.weight"] = down.to(torch.bfloat16).contiguous()
        tensors[f"{prefix}{path}.lora_B.weight"] = up.to(torch.bfloat16).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt"}
    if metadata:
        header["lora_adapter_metadata"] = json.dumps(metadata, sort_keys=True)
    save_file(tensors, file, header)
    file.chmod(0o644)


def load(file: Path, prefix: str) -> Changes:
    """The matrices of a file that `save` wrote, in float32."""
    tensors = load_file(file)
    paths = [name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name]
    return {
        path.removeprefix(prefix): (
            tensors[f"{path}.lora_A.weight"].float(),
            tensors[f"{path}.lora_B.weight"].float(),
        )
        for path in paths
    }


@torch.no_grad()
def fuse(model: nn.Module, adapters: Iterable[tuple[Changes, float]]) -> None:
    """Add each adapter's product, times its scale, to the model's weights."""
    for changes, scale in adapters:
        for path, (down, up) in changes.items():
            weight = model.get_submodule(path).weight
            weight += (scale * (up @ down)).to(weight.dtype)
