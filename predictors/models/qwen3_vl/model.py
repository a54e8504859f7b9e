"""Qwen3-VL, dense: a Qwen3 decoder with interleaved M-RoPE, and a vision tower whose middle layers
reach the first decoder layers (DeepStack).

Checkpoints in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from predictors.chat.checkpoint import HubCheckpoint
from predictors.chat.decoder.weights import load_modules
from predictors.chat.grounding.boxes import Convention
from predictors.chat.model import ChatModules
from predictors.chat.predictor import ChatPredictor
from predictors.compute.device.placement import Placement
from predictors.models.qwen3_vl.config import read_shapes
from predictors.models.qwen3_vl.films import TimedFilms
from predictors.models.qwen3_vl.folder import linears
from predictors.models.qwen3_vl.vision.encoder import Encoder
from predictors.models.qwen3_vl.vision.tower import VisionTower, vision_slots


class Qwen3VLModel(HubCheckpoint):
    """Implements `ChatModel`."""

    film_processor = "Qwen3VLVideoProcessor"
    films_rename_edges = False
    coordinates: Convention = "normalized_1000"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }

    film_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": image_defaults["image_mean"],
        "image_std": image_defaults["image_std"],
        "patch_size": image_defaults["patch_size"],
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
        "fps": 2,
    }

    def __init__(self, checkpoint: Path, variant: str = "") -> None:
        """`variant` is the wanted one of the weights files."""
        config, shape, self.vision = read_shapes(checkpoint)
        super().__init__(checkpoint, config, shape, self.vision)
        self.linears = linears(config)
        self._checkpoint, self._variant = checkpoint, variant

    def make_films(self, videos: Any) -> TimedFilms:
        return TimedFilms(videos)

    def load(self, placement: Placement) -> ChatModules:
        decoder, tower = load_modules(
            self._checkpoint,
            self.shape,
            lambda: VisionTower(self.vision),
            vision_slots,
            placement,
            self._variant,
        )
        return ChatModules(decoder, Encoder(tower, placement))


make_predictor = partial(ChatPredictor.of_checkpoint, Qwen3VLModel)
