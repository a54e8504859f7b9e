"""Folders of layers that a method wrote: a single component, and changes of a whole checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.compute.checkpoint.quantised.writers import Method
from tests.variants import Change, Tensors, config, weights


def folder_of(
    path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """A component's folder with these tensors, and a config that names a quantisation."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    named = {} if config is None else {"quantization_config": config}
    (path / "config.json").write_text(json.dumps({"hidden_size": 1} | named))
    return path


def layer(stem: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stem}.{leaf}": tensor for leaf, tensor in stored.items()}


def quantised(file: str, linears: str, method: Method, config_file: str = "config.json") -> Change:
    """Store the weights whose names match `linears` as `method` does, and say so in the config."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if re.search(linears, name)]:
            written = method.write(tensors.pop(name).float())
            stored = {leaf: tensor.clone() for leaf, tensor in written.stored.items()}
            tensors |= layer(name.removesuffix(".weight"), stored)

    named = config(config_file, quantization_config=method.config) if method.config else None
    return _both(weights(file, edit), named)


def dequantised(file: str, linears: str, method: Method) -> Change:
    """Store what the method's owner makes of those weights, in float32."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if re.search(linears, name)]:
            tensors[name] = method.write(tensors[name].float()).weight

    return weights(file, edit)


def _both(first: Change, second: Change | None) -> Change:
    def change(folder: Path) -> None:
        first(folder)
        if second is not None:
            second(folder)

    return change
