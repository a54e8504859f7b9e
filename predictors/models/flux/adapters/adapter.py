"""An adapter as tensors for the engine, checked against a loaded checkpoint's own configs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from predictors.compute.checkpoint.folder import read_json
from predictors.diffusion.adapters import AdapterWeights, LowRank
from predictors.models.flux.adapters.places import CLIP, TRANSFORMER, Places
from predictors.models.flux.adapters.reading import MAX_RANK, StoredAdapter, read_stored
from predictors.models.flux.tensors import with_defaults

if TYPE_CHECKING:
    from predictors.models.flux.config import FluxConfig


def read_adapter(
    path: Path,
    name: str,
    config: FluxConfig,
    *,
    max_rank: int = MAX_RANK,
    root: Path | None = None,
) -> AdapterWeights:
    """The adapter in the file or folder at `path`; `root` as in `read_stored`. Any thread; takes
    seconds for a large one. Raises `InvalidRequest`."""
    return as_tensors(read_stored(path, places_of(config), max_rank, root), name)


def places_of(config: FluxConfig) -> Places:
    """Read from the configs of the folders that are served."""
    parts = (TRANSFORMER, CLIP)
    raw = {
        part: read_json(config.folders[part], "config.json", f"{part}/config.json")
        for part in parts
    }
    return Places({part: with_defaults(part, raw[part]) for part in parts})


def as_tensors(stored: StoredAdapter, name: str) -> AdapterWeights:
    """The same values, without a copy."""
    changes = {
        path: LowRank(torch.from_numpy(change.down), torch.from_numpy(change.up))
        for path, change in stored.changes.items()
    }
    return AdapterWeights(name, stored.digest, changes)
