"""The predictor of a FLUX.1 checkpoint, apart from `model`, which benchmarks use without KServe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from predictors.compute.checkpoint.layout import announce_weights
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.models.flux.folder import WEIGHTED_PARTS
from predictors.models.flux.model import FluxModel
from predictors.settings import Settings
from predictors.workers.pool import Workers


def make_predictor(
    name: str,
    checkpoint: Path,
    settings: Settings,
    workers: Workers | None = None,
    parts: Mapping[str, Path] = MappingProxyType({}),
    loras: Mapping[str, Path] = MappingProxyType({}),
) -> DiffusionPredictor:
    """`parts` are folders of parts that are used instead of those in `checkpoint`, and `loras` the
    files or folders of its first adapters by name. Raises `InvalidRequest` for one of them."""
    variant = settings.compute.weights_variant
    model = FluxModel(checkpoint, parts=parts, variant=variant, kind=settings.flux.kind)
    for part in WEIGHTED_PARTS:
        announce_weights(f"{name}, {part}", model.config.folders[part], variant)
    settings = settings.with_adapter_room("flux", len(loras))
    predictor = DiffusionPredictor(name, model, settings, workers)
    for lora, path in loras.items():
        predictor.add_lora(lora, path)
    return predictor
