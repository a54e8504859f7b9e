"""A FLUX.1 checkpoint in diffusers layout, for the diffusion engine.

Making a `FluxModel` reads configs and tokenizers; its `load` reads the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.placement import Placement
from predictors.diffusion.adapters import AdapterPlace, AdapterWeights
from predictors.diffusion.model import LoadOptions, Prompt
from predictors.diffusion.request import SourcePicture
from predictors.diffusion.sampling import draw_noise
from predictors.diffusion.sources import SourceInputs
from predictors.models.flux.adaptable import adapter_places
from predictors.models.flux.adapters.adapter import as_tensors
from predictors.models.flux.adapters.reading import read_places, read_stored, summarise_stored
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.passes import FluxPasses
from predictors.models.flux.sources import read_source
from predictors.models.flux.weights import OpenComponent, load_parts


class FluxModel:
    """Implements `DiffusionModel`, `AdaptableModel` and `EditingModel`."""

    def __init__(
        self,
        checkpoint: Path,
        open_component: OpenComponent | None = None,
        parts: Mapping[str, Path] = MappingProxyType({}),
        variant: str = "",
        kind: str = "auto",
    ) -> None:
        """Raises `EngineFailed` for a folder that can't be served. `open_component` stands for the
        folder when weights are loaded; `parts`, `variant` and `kind` as in `read_checkpoint`."""
        self.config, self._tokenizers = read_checkpoint(checkpoint, parts, variant, kind)
        self.schedule = self.config.schedule
        # a tokenizer refuses to be borrowed twice
        self._lock = threading.Lock()
        self._open_component = open_component

    def tokenize(self, text: str, num_tokens: int) -> Prompt:
        """CLIP's ids, padded or cut to 77, and T5's, to `num_tokens`, as in diffusers."""
        with self._lock:
            clip, t5 = self._tokenizers.clip, self._tokenizers.t5
            clip_ids = clip.padded(clip.read(text), clip.model_max_length)
            read = t5.read(text)
            t5_ids = t5.padded(read, num_tokens)
        num_read = min(len(read), num_tokens)
        ids = tuple(torch.tensor([each]) for each in (clip_ids, t5_ids))
        return Prompt((text, num_tokens), ids, num_read, len(read) - num_read)

    def draw_noise(self, seed: int, rows: int, columns: int) -> Tensor:
        return draw_noise(seed, self.config.latent_channels, rows, columns)

    def read_adapter(
        self, path: Path, name: str, *, max_rank: int, root: Path | None = None
    ) -> tuple[AdapterWeights, AdapterSummary]:
        """As `ReadsAdapters`."""
        stored = read_stored(path, read_places(self.config.folders), max_rank, root)
        return as_tensors(name, stored), summarise_stored(name, stored)

    def read_source(self, source: SourcePicture, seed: int, strength: float) -> SourceInputs:
        return read_source(self.config, source, seed, strength)

    def adapter_places(self) -> Mapping[str, AdapterPlace]:
        return adapter_places(self.config)

    def load(self, name: str, placement: Placement, options: LoadOptions) -> FluxPasses:
        parts = load_parts(
            self.config,
            placement,
            options.forms,
            self._open_component,
            fp8_conditioning=options.fp8_conditioning,
            encodes=options.encodes,
        )
        return FluxPasses(name, self.config, parts, placement, options)
