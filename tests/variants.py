"""Checkpoints that are wrong in one way: a copy of links to the embedded one, and what a test
rewrites in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
FLUX, QWEN = CHECKPOINTS / "shapes-flux", CHECKPOINTS / "shapes-qwen-vl"
Change = Callable[[Path], object]
"""Makes a folder wrong."""
Tensors = dict[str, torch.Tensor]


def variant(source: Path, target: Path, *changes: Change) -> Path:
    """A copy of `source` with these changes; what is not rewritten is shared."""
    shutil.copytree(source, target, copy_function=os.symlink)
    for change in changes:
        change(target)
    return target


def write(file: str, content: str | bytes) -> Change:
    """Replace a file."""

    def change(folder: Path) -> None:
        path = folder / file
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def without(*files: str) -> Change:
    """Take files or folders away."""

    def change(folder: Path) -> None:
        for file in files:
            path = folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def cut(file: str, num_bytes: int = 200) -> Change:
    """A file whose end was lost."""
    return lambda folder: write(file, (folder / file).read_bytes()[:-num_bytes])(folder)


def config(file: str, **values: Any) -> Change:
    """Set values of a JSON file, or drop those that are `...`."""

    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        found |= {name: value for name, value in values.items() if value is not ...}
        for name in [name for name, value in values.items() if value is ...]:
            found.pop(name, None)
        write(file, json.dumps(found))(folder)

    return change


def nested(file: str, part: str, **values: Any) -> Change:
    """The same for an object inside a JSON file."""

    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text())[part]
        config(file, **{part: found | values})(folder)

    return change


def weights(file: str, edit: Callable[[Tensors], object]) -> Change:
    """Rewrite tensors of a safetensors file: `edit` changes them in place."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        edit(tensors)
        (folder / file).unlink()
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / file)

    return change


def added(tensors: Mapping[str, torch.Tensor]) -> Callable[[Tensors], object]:
    """Beside what is there."""
    return lambda found: found.update(tensors)


def scaled(name: str, dtype: torch.dtype, scale: str) -> Callable[[Tensors], object]:
    """A weight in eight bits, and beside it (`scale` for its leaf) what it is multiplied by."""

    def edit(tensors: Tensors) -> None:
        weight = tensors[name].float()
        most = weight.abs().amax(1, keepdim=True) / (448 if dtype.is_floating_point else 127)
        narrow = weight / most
        tensors[name] = (narrow if dtype.is_floating_point else narrow.round()).to(dtype)
        tensors[f"{name.rpartition('.')[0]}.{scale}"] = most

    return edit


def recast(name: str, dtype: torch.dtype) -> Callable[[Tensors], object]:
    """A weight in another kind of number, with nothing beside it."""
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def dropped(name: str) -> Callable[[Tensors], object]:
    """A tensor that is not there."""
    return lambda tensors: tensors.pop(name)
