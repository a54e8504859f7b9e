"""A full-size checkpoint from files to the device: our loader beside diffusers' `from_pretrained`.

The files were written a moment before, so they lie in the page cache: measured is the way from
there to the device, the slower half on most machines. 34 GB at full size; not part of a default
run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.clock import Clock
from benchmarks.flux.random_weights import EMBEDDED, Models
from predictors.compute.device.placement import Placement
from predictors.diffusion.request import BASE
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.weights import load_parts

SHARD_BYTES = 5 * 10**9
STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def measure(clock: Clock, models: Models, folder: Path, placement: Placement) -> dict[str, Any]:
    try:
        write_s, num_bytes = clock.seconds(lambda: write(models, folder))
        config, _ = read_checkpoint(folder)
        ours_s, parts = clock.seconds(lambda: load_parts(config, placement, (BASE,)))
        del parts
        from_pretrained: Any = FluxPipeline.from_pretrained
        peer_s, pipeline = clock.seconds(
            lambda: from_pretrained(folder, dtype=placement.dtype, local_files_only=True).to(
                placement.device
            )
        )
        del pipeline
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {"bytes": num_bytes, "write_s": write_s, "here_s": ours_s, "diffusers_s": peer_s}
    print(f"  {found}, {num_bytes / ours_s / 1e9:.2f} GB/s here", flush=True)
    return found


def write(models: Models, folder: Path) -> int:
    """The checkpoint as the hubs ship it: configs, tokenizers, shards with their index. Returns the
    bytes of all tensors."""
    shutil.copytree(models.folder, folder)
    shutil.copy(EMBEDDED / "model_index.json", folder)
    total = 0
    for part, state in models.states().items():
        shards = list(_shards(state))
        for i, shard in enumerate(shards, start=1):
            tail = f"-{i:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            save_file(shard, folder / part / f"{STEMS[part]}{tail}.safetensors")
        if len(shards) > 1:
            _write_index(folder / part / f"{STEMS[part]}.safetensors.index.json", shards, part)
        total += sum(tensor.nbytes for tensor in state.values())
    return total


def _shards(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Groups of at most `SHARD_BYTES`; of two names for one tensor the first is stored."""
    shard: dict[str, Tensor] = {}
    seen: set[int] = set()
    size = 0
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _write_index(path: Path, shards: list[dict[str, Tensor]], part: str) -> None:
    where = {
        name: f"{STEMS[part]}-{i:05d}-of-{len(shards):05d}.safetensors"
        for i, shard in enumerate(shards, start=1)
        for name in shard
    }
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    path.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
