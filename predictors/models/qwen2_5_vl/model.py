"""Qwen2.5-VL: a Qwen2 decoder with M-RoPE, and a vision tower that attends inside windows.

Checkpoints in transformers' layout, nested or as the hub has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from predictors.chat.checkpoint import HubCheckpoint
from predictors.chat.decoder.weights import load_modules
from predictors.chat.folder import parts_of
from predictors.chat.grounding.boxes import Convention
from predictors.chat.model import ChatModules
from predictors.chat.predictor import ChatPredictor
from predictors.compute.device.placement import Placement
from predictors.models.qwen2_5_vl.config import read_shapes
from predictors.models.qwen2_5_vl.films import SpacedFilms
from predictors.models.qwen2_5_vl.folder import POSITIONS_PER_SECOND, linears
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.tower import VisionTower, vision_slots


class Qwen25VLModel(HubCheckpoint):
    """Implements `ChatModel`."""

    film_processor = "Qwen2VLVideoProcessor"
    films_rename_edges = True
    coordinates: Convention = "pixels"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": (0.48145466, 0.4578275, 0.40821073),  # CLIP's
        "image_std": (0.26862954, 0.26130258, 0.27577711),
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }

    film_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": image_defaults["image_mean"],
        "image_std": image_defaults["image_std"],
        "patch_size": image_defaults["patch_size"],
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    }

    def __init__(self, checkpoint: Path, variant: str = "") -> None:
        """`variant` is the wanted one of the weights files."""
        config, shape, self.vision = read_shapes(checkpoint)
        own = parts_of(config)["vision_config"].get("tokens_per_second")
        self._positions_per_second: int = POSITIONS_PER_SECOND if own is None else own
        super().__init__(checkpoint, config, shape, self.vision)
        self.linears = linears(config)
        self._checkpoint, self._variant = checkpoint, variant

    def make_films(self, videos: Any) -> SpacedFilms:
        return SpacedFilms(videos, self._positions_per_second)

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


make_predictor = partial(ChatPredictor.of_checkpoint, Qwen25VLModel)
