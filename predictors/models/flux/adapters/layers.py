"""The layers that an adapter's tensors belong to: which tensors one has, whether their shapes fit
to the checkpoint, and the two halves of its change. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from predictors.compute.checkpoint.adapter_scales import AdapterConfig
from predictors.compute.checkpoint.strict_file import LARGEST, StrictFile, named
from predictors.errors import InvalidRequest
from predictors.models.flux.adapters.names import ALPHA, DOWN, UP, Half
from predictors.models.flux.adapters.places import Place
from predictors.models.flux.adapters.products import (
    KINDS,
    change_shape,
    factor_rank,
    halves_of,
    missing_kind,
    rank_advice,
)

Array = NDArray[np.float32]


@dataclass(slots=True)
class AdapterLayer:
    """The tensors of one stored layer by kind: name and meaning of each."""

    place: Place
    halves: dict[str, tuple[str, Half]] = field(default_factory=dict)

    @property
    def is_product(self) -> bool:
        """True for a layer of a LoHa or LoKr adapter."""
        return not KINDS.isdisjoint(self.halves)

    @property
    def first(self) -> tuple[str, Half]:
        """The tensor that messages name."""
        if DOWN in self.halves:
            return self.halves[DOWN]
        return next(each for kind, each in self.halves.items() if kind != ALPHA)

    def shapes(self, file: StrictFile) -> dict[str, tuple[int, ...]]:
        """Of all tensors but the alpha, by kind."""
        own = {kind: name for kind, (name, _) in self.halves.items() if kind != ALPHA}
        return {kind: file.headers[name].shape for kind, name in own.items()}

    def read(self, file: StrictFile) -> tuple[Array, Array]:
        """`down` (rank, inputs) and `up` (outputs, rank), without the factor."""
        own = {kind: name for kind, (name, _) in self.halves.items() if kind != ALPHA}
        tensors = {kind: file.read(name) for kind, name in own.items()}
        return halves_of(tensors) if self.is_product else (tensors[DOWN], tensors[UP])


def group_layers(file: StrictFile, halves: Mapping[str, Half]) -> list[AdapterLayer]:
    """The layers, each with all tensors of its change and none twice."""
    layers: dict[str, AdapterLayer] = {}
    for name, half in halves.items():
        layer = layers.setdefault(half.place.name, AdapterLayer(half.place))
        if half.kind in layer.halves:
            other = layer.halves[half.kind][0]
            raise InvalidRequest(
                f"{file.name} has two tensors for one: {named(other)} and {named(name)}"
            )
        layer.halves[half.kind] = (name, half)
    for layer in layers.values():
        _check_whole(file, layer)
    return list(layers.values())


def _check_whole(file: StrictFile, layer: AdapterLayer) -> None:
    there = next(iter(layer.halves.values()))[0]
    missing = {DOWN, UP} - layer.halves.keys()
    if not layer.is_product:
        if missing:
            raise InvalidRequest(
                f"{file.name} has {named(there)}, but not the {min(missing)} half of that layer"
            )
        return
    if len(missing) < 2:
        other = next(name for kind, (name, _) in layer.halves.items() if kind in KINDS)
        raise InvalidRequest(
            f"{file.name} changes one layer in two ways: by {named(layer.first[0])} and "
            f"{named(other)}"
        )
    if lacking := missing_kind(layer.halves):
        raise InvalidRequest(f"{file.name} has {named(there)}, but not its {lacking}")


# -- shapes ----------------------------------------------------------------------------------------
def check_layer(file: StrictFile, layer: AdapterLayer, max_rank: int) -> None:
    """Raise `InvalidRequest` for shapes that do not fit, and for a rank above `max_rank`."""
    place, (name, _) = layer.place, layer.first
    rank = _product_rank(file, layer) if layer.is_product else _rank(file, layer)
    if rank > max_rank * len(place.pieces):  # whose parts may have as much each
        more = rank_advice(layer.shapes(file)) if layer.is_product else ""
        raise InvalidRequest(over_rank(file, name, rank, max_rank) + more)


def _product_rank(file: StrictFile, layer: AdapterLayer) -> int:
    place, (name, _) = layer.place, layer.first
    try:
        rows, columns, rank = change_shape(layer.shapes(file))
    except ValueError as error:
        raise InvalidRequest(f"{file.name}: {named(name)}: {error}") from error
    _check_shape(file, name, (rows, columns), (place.out_features, place.in_features))
    return rank


def _rank(file: StrictFile, layer: AdapterLayer) -> int:
    place = layer.place
    (down_name, _), (up_name, _) = layer.halves[DOWN], layer.halves[UP]
    down, up = file.headers[down_name].shape, file.headers[up_name].shape
    rank = down[0] if down else 0
    _check_shape(file, down_name, down, (rank or 1, place.in_features))
    _check_shape(file, up_name, up, (place.out_features, up[1] if len(up) == 2 else rank))
    if up[1] != rank:
        raise InvalidRequest(
            f"{file.name} has two ranks for one layer: {named(down_name)} is {list(down)}, "
            f"{named(up_name)} {list(up)}"
        )
    return rank


def _check_shape(
    file: StrictFile, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if found != wanted:
        raise InvalidRequest(
            f"{file.name}: tensor {named(name)} has shape {list(found)}; the checkpoint asks for "
            f"{list(wanted)}: it is an adapter of another model"
        )


def over_rank(file: StrictFile, name: str, rank: int, max_rank: int) -> str:
    return (
        f"{file.name}: {named(name)} has rank {rank}; at most {max_rank} is served "
        "(PREDICTORS_FLUX_LORA_MAX_RANK)"
    )


# -- values ----------------------------------------------------------------------------------------
def layer_factor(
    file: StrictFile, layer: AdapterLayer, config: AdapterConfig | None, rank: int
) -> float:
    """The factor of the product of the halves: 1 where nothing says otherwise, and for a LoKr of
    whole matrices, as LyCORIS has it."""
    if layer.is_product:
        rank = factor_rank(layer.shapes(file))
    if ALPHA not in layer.halves or not rank:
        return 1.0 if config is None else config.factor(layer.first[1].path, rank)
    name, _ = layer.halves[ALPHA]
    if config is not None:
        raise InvalidRequest(
            f"{file.name} has {named(name)} and {config.where}, of which only one can be meant"
        )
    alpha = file.read_scalar(name)
    if not 0 < alpha <= LARGEST:
        raise InvalidRequest(
            f"{file.name}: {named(name)} is {alpha:g}; an alpha is above 0 and at most "
            f"{LARGEST:.0e}"
        )
    return alpha / rank
