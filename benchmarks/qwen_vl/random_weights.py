"""A random Qwen2.5-VL-3B checkpoint at full size, made on the device and kept on a memory disk, and
a toy of the embedded checkpoint's size. transformers, our engine, our server and vLLM read the same
folder.

Speed does not depend on the values, so anyone with a GPU can rerun the benchmark without a
download. Matrices are normal with 0.02 (a residual stream of 36 layers stays finite in bfloat16,
logits have a spread of about 1), norms are about 1, biases are small and not zero: a forgotten one
would show in the accuracy section. The vocabulary is the embedded tokenizer's, filled up to 151,936
with three-letter tokens that no text contains, so that every token of an answer has text on the
wire.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import string
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.common import paths

EMBEDDED = paths.SHAPES_QWEN_VL
SEED = 2026
SPREAD = 0.02
NORM_SPREAD = 0.05
COPIED = (
    "chat_template.json", "generation_config.json", "merges.txt", "preprocessor_config.json",
    "tokenizer_config.json",
)  # fmt: skip
DONE = "complete"
"""A file that is written last: a folder without it was cut off."""

Config = Mapping[str, Any]

FULL: Config = {
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "layer_types": ["full_attention"] * 36,
        "rope_parameters": {
            "mrope_section": [16, 24, 24],
            "rope_theta": 1000000.0,
            "rope_type": "default",
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""What differs from the embedded checkpoint in Qwen2.5-VL-3B-Instruct; the rest is the same."""

TOY: Config = {}


def make(
    folder: Path,
    changes: Config,
    device: torch.device,
    files: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, float]:
    """Make the checkpoint in `folder` unless it is there; returns seconds, parameters and bytes.
    `files` are JSON files by name, in place of the embedded checkpoint's."""
    started = time.perf_counter()
    if not (folder / DONE).exists():
        write_configs(folder, changes)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        save_file(dict(tensors(folder, device)), folder / "model.safetensors", {"format": "pt"})
        (folder / DONE).write_text("")
    size = (folder / "model.safetensors").stat().st_size
    return {
        "seconds": time.perf_counter() - started,
        "bytes": size,
        "parameters": sum(shape.numel() for shape in shapes(folder).values()),
    }


def write_configs(folder: Path, changes: Config) -> None:
    """Everything but the weights. A model of another type takes only the embedded one's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((EMBEDDED / "config.json").read_text())
    if "model_type" in changes:
        config = {name: value for name, value in config.items() if name.endswith("_token_id")}
    for part, own in changes.items():
        config[part] = {**config.get(part, {}), **own} if isinstance(own, Mapping) else own
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in COPIED:
        shutil.copy(EMBEDDED / name, folder)
    _write_vocabulary(folder, config["text_config"]["vocab_size"])


def _write_vocabulary(folder: Path, size: int) -> None:
    tokenizer = json.loads((EMBEDDED / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    if size > 2 * len(vocabulary):  # the embedded size leaves its last few ids without a word
        vocabulary |= filling(vocabulary, size)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def filling(known: Mapping[str, int], size: int) -> dict[str, int]:
    """Words for the ids from the last known one up to `size`. No merge leads to them."""
    letters = string.ascii_letters + string.digits
    words = ("".join(three) for three in itertools.product(letters, repeat=3))
    free = (word for word in words if word not in known)
    return {next(free): i for i in range(max(known.values()) + 1, size)}


def shapes(folder: Path) -> dict[str, torch.Size]:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = {name: value.shape for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)
    return found


def tensors(folder: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Random weights by name, in the CPU's memory, bfloat16; drawn on `device`."""
    generator = torch.Generator(device).manual_seed(SEED)
    for name, shape in shapes(folder).items():
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=device)
        is_norm = len(shape) == 1 and name.endswith("weight")
        drawn.normal_(float(is_norm), NORM_SPREAD if is_norm else SPREAD, generator=generator)
        yield name, drawn.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    changes = TOY if asked.toy else FULL
    print(json.dumps(make(asked.folder, changes, torch.device(asked.device))))


if __name__ == "__main__":
    main()
