"""An adapter as tensors for the engine, checked against a loaded checkpoint's own configs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from predictors.diffusion.adapters import AdapterWeights, LowRank
from predictors.models.flux.adapters.reading import StoredAdapter, read_places, read_stored
from predictors.settings import MOST_RANK

if TYPE_CHECKING:
    from predictors.models.flux.config import FluxConfig


def read_adapter(
    path: Path,
    name: str,
    config: FluxConfig,
    *,
    max_rank: int = MOST_RANK,
    root: Path | None = None,
) -> AdapterWeights:
    """The adapter in the file or folder at `path`; `root` as in `read_stored`. Any thread; takes
    seconds for a large one. Raises `InvalidRequest`."""
    return as_tensors(name, read_stored(path, read_places(config.folders), max_rank, root))


def as_tensors(name: str, stored: StoredAdapter) -> AdapterWeights:
    """The same values, without a copy."""
    changes = {
        path: LowRank(torch.from_numpy(change.down), torch.from_numpy(change.up))
        for path, change in stored.changes.items()
    }
    return AdapterWeights(name, stored.digest, changes)
