"""Qwen2.5-VL: a Qwen2 decoder with M-RoPE, and a vision tower that attends inside windows.

Checkpoints in transformers' layout, nested or as the hub has them.
"""

from __future__ import annotations

from pathlib import Path

from predictors.chat.checkpoint import HubCheckpoint
from predictors.chat.decoder.weights import load_modules
from predictors.chat.model import ChatModules
from predictors.chat.predictor import ChatPredictor
from predictors.compute.device.placement import Placement
from predictors.models.qwen2_5_vl.config import read_shapes
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.tower import VisionTower, vision_slots
from predictors.settings import Settings
from predictors.workers.pool import Workers


class Qwen25VLModel(HubCheckpoint):
    """Implements `ChatModel`."""

    def __init__(self, checkpoint: Path) -> None:
        config, shape, self.vision = read_shapes(checkpoint)
        super().__init__(checkpoint, config, shape, self.vision)
        self._checkpoint = checkpoint

    def load(self, placement: Placement) -> ChatModules:
        decoder, tower = load_modules(
            self._checkpoint, self.shape, lambda: VisionTower(self.vision), vision_slots, placement
        )
        return ChatModules(decoder, Encoder(tower, placement))


def make_predictor(
    name: str, checkpoint: Path, settings: Settings, workers: Workers | None = None
) -> ChatPredictor:
    return ChatPredictor(name, Qwen25VLModel(checkpoint), settings, workers)
