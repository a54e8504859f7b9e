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

from predictors.__main__ import describe_folder
from predictors.errors import ServingError
from predictors.settings import Settings

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


SCALED_METHODS = (
    (torch.int8, "SCB", "bitsandbytes int8"),
    (torch.float8_e4m3fn, "weight_scale_inv", "FP8 in blocks"),
)
LEAF_METHODS = {
    "qweight": "AWQ",
    "qzeros": "AWQ",
    "scales": "integers with scales",
    "g_idx": "GPTQ",
    "SCB": "bitsandbytes int8",
    "weight.absmax": "bitsandbytes 4-bit",
    "weight.quant_map": "bitsandbytes 4-bit",
    "weight.quant_state.bitsandbytes__nf4": "bitsandbytes 4-bit",
    "weight_packed": "compressed-tensors",
    "weight_shape": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "weight_global_scale": "NVFP4",
    "weight_scale": "compressed-tensors",
    "weight_scale_2": "NVFP4",
    "input_scale": "FP8",
    "k_scale": "KV-cache scales",
    "v_scale": "KV-cache scales",
    "weight._data": "quanto",
    "weight_quantizer._amax": "ModelOpt",
    "scale": "scales",
    "codebooks": "AQLM",
    "W_q": "HQQ",
    "weight_qdata": "torchao",
    "wscales": "SVDQuant",
}
Refused = dict[str, tuple[Change, tuple[str, ...]]]
"""Cases by name: a change, and words that the refusal must have."""


def scaled_layer(file: str, layer: str, component: str) -> Refused:
    """A linear layer in eight bits with scales of a shape that their method does not write."""
    return {
        f"{layer} in {dtype} with {scale}": (
            weights(file, scaled(f"{layer}.weight", dtype, scale)),
            (f"{component} is quantised", method, f"{layer}.{scale}"),
        )
        for dtype, scale, method in SCALED_METHODS
    }


def layer_with_leaf(file: str, layer: str, component: str) -> Refused:
    """A linear layer with a tensor of a quantisation beside its weight, one case per tensor."""
    return {
        f"{layer} with {leaf}": (
            weights(file, added({f"{layer}.{leaf}": torch.ones(1)})),
            (f"{component} is quantised", method, f"{layer}.{leaf}", "unquantised folder"),
        )
        for leaf, method in LEAF_METHODS.items()
    }


def plain_message(failure: ServingError, folder: Path) -> str:
    """As `short_message`, and `predictors check` gives it too."""
    message = short_message(failure, folder)
    said = said_by_check(folder)
    # a start reads the class first, and then what the class's own code would say
    assert said == message or said.startswith(f"{folder.name} is a ")
    return message


def short_message(failure: ServingError, folder: Path) -> str:
    """The failure's message, which is one short line of ASCII without the folder's place."""
    message = failure.message
    assert str(folder) not in message
    assert "\n" not in message
    assert message.isascii()
    assert len(message) < 400
    return message


def said_by_check(folder: Path) -> str:
    """The message of `predictors check` about a folder that is not served; empty if it is."""
    try:
        describe_folder(folder, Settings())
    except ServingError as error:
        return error.message
    return ""
