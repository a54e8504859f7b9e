"""Adapters of random values, and diffusers' modules with an adapter fused into their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import nn

from predictors.compute.low_rank import AdapterWeights, LowRank
from predictors.diffusion.adapters import AdapterPlace
from predictors.models.flux.adaptable import adapter_places
from predictors.models.flux.model import FluxModel
from tests.diffusion.driver import CHECKPOINT

PLACES = adapter_places(FluxModel(CHECKPOINT).config)
SIZE = 0.02  # of a random value of `up`: the picture changes and stays a picture


def random_adapter(
    name: str,
    rank: int,
    where: Callable[[str, AdapterPlace], bool] = lambda path, place: True,
    *,
    size: float = SIZE,
    places: Mapping[str, AdapterPlace] = PLACES,
) -> AdapterWeights:
    """An adapter of the linears that `where` picks; its values follow from its name."""
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    changes = {
        path: LowRank(drawn(rank, place.in_features), size * drawn(place.out_features, rank))
        for path, place in places.items()
        if where(path, place)
    }
    return AdapterWeights(name, f"digest of {name}", changes)


def fuse(pipeline: FluxPipeline, adapters: Mapping[AdapterWeights, float]) -> None:
    """Add the adapters with their scales to the weights of diffusers' modules."""
    for weights, scale in adapters.items():
        for path, change in weights.changes.items():
            component, _, inner = path.partition(".")
            module: Any = getattr(pipeline, component)
            layer = module.get_submodule(_of_installed_library(component, inner))
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight += scale * (change.up @ change.down)


def _of_installed_library(component: str, path: str) -> str:
    """CLIP of transformers 5 has no `text_model` in its paths."""
    return path.removeprefix("text_model.") if component == "text_encoder" else path
