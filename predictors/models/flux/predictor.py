"""The predictor of a FLUX.1 checkpoint, apart from `model`, which benchmarks use without KServe."""

from __future__ import annotations

from pathlib import Path

from predictors.diffusion.predictor import DiffusionPredictor
from predictors.models.flux.model import FluxModel
from predictors.settings import Settings
from predictors.workers.pool import Workers


def make_predictor(
    name: str, checkpoint: Path, settings: Settings, workers: Workers | None = None
) -> DiffusionPredictor:
    return DiffusionPredictor(name, FluxModel(checkpoint), settings, workers)
