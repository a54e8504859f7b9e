"""A random Qwen2.5-VL checkpoint of one of `benchmarks.qwen_vl.sizes`, made on the device and kept
on a memory disk. transformers, our engine, our server and vLLM read the same folder.

Speed does not depend on the values, so anyone with a GPU can rerun the benchmark without a
download. Matrices are normal with 0.02 (a residual stream of 36 layers stays finite in bfloat16,
logits have a spread of about 1), norms are about 1, biases are small and not zero: a forgotten one
would show in the accuracy section. The vocabulary is the embedded tokenizer's, filled up to the
model's with three-letter tokens that no text contains, so that every token of an answer has text on
the wire.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.common import paths
from benchmarks.qwen_vl.sizes import SIZES, THREE, Config

EMBEDDED = paths.SHAPES_QWEN_VL
SEED = 2026
SPREAD = 0.02
VALUE_BYTES = 2
NORM_SPREAD = 0.05
COPIED = (
    "chat_template.json", "generation_config.json", "merges.txt", "preprocessor_config.json",
    "tokenizer_config.json",
)  # fmt: skip
DONE = "complete"
"""A file that is written last: a folder without it was cut off."""
SHARD_BYTES = 2 * 2**30
"""Of weights, per file. The host holds one file's weights at a time."""
INDEX = "model.safetensors.index.json"


def make(
    folder: Path,
    changes: Config,
    device: torch.device,
    files: Mapping[str, object] = MappingProxyType({}),
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, float]:
    """Make the checkpoint in `folder` unless it is there; returns seconds, parameters and bytes.
    `files` are JSON files by name, in place of the embedded checkpoint's. Raises `OSError` if the
    disk has no room for it."""
    started = time.perf_counter()
    if not (folder / DONE).exists():
        write_configs(folder, changes)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        write_shards(folder, shards(shapes(folder), shard_bytes), tensors(folder, device))
        (folder / DONE).write_text("")
    return {
        "seconds": time.perf_counter() - started,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
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


def shards(shapes: Mapping[str, torch.Size], most_bytes: int) -> list[dict[str, int]]:
    """Bytes of the tensors of each file, by name, in order. A file has at most `most_bytes`, or one
    tensor."""
    files: list[dict[str, int]] = [{}]
    for name, shape in shapes.items():
        size = VALUE_BYTES * shape.numel()
        if files[-1] and sum(files[-1].values()) + size > most_bytes:
            files.append({})
        files[-1][name] = size
    return files


def write_shards(
    folder: Path, files: Sequence[Mapping[str, int]], drawn: Iterator[tuple[str, Tensor]]
) -> None:
    """Write `drawn`, in the order of `files`, file by file, and their index. Weights of an earlier
    attempt are deleted first."""
    for old in folder.glob("*.safetensors"):
        old.unlink()
    whole, free = sum(sum(file.values()) for file in files), shutil.disk_usage(folder).free
    if whole > free:
        raise OSError(
            f"the checkpoint takes {whole / 1e9:.1f} GB and the disk of {folder} has "
            f"{free / 1e9:.1f} GB free; choose another disk with --folder"
        )
    index = {}
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(dict(itertools.islice(drawn, len(file))), folder / name, {"format": "pt"})
        index |= dict.fromkeys(file, name)
    described = {"metadata": {"total_size": whole}, "weight_map": index}
    (folder / INDEX).write_text(json.dumps(described, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default=THREE.name)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    changes = SIZES[asked.size].config(is_toy=asked.toy)
    print(json.dumps(make(asked.folder, changes, torch.device(asked.device))))


if __name__ == "__main__":
    main()
