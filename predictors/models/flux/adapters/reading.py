"""Reads an adapter's file into low-rank changes of diffusers' linears, as numpy arrays, or refuses
it naming the tensor. Without torch, so that `check` describes an adapter in a moment.

Every tensor of the file is used, and every shape is checked against the checkpoint before a value
is read. Fused layers are cut into diffusers' linears, each with those ranks alone that reach it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from predictors.compute.checkpoint.adapter_files import find_files
from predictors.compute.checkpoint.adapter_scales import (
    MAX_CONFIG_BYTES,
    AdapterConfig,
    read_metadata,
    read_peft_config,
)
from predictors.compute.checkpoint.folder import read_json
from predictors.compute.checkpoint.strict_file import (
    LARGEST,
    StrictFile,
    named,
    parse_object,
    read_small_file,
)
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest
from predictors.models.flux.adapters.layers import (
    AdapterLayer,
    check_layer,
    group_layers,
    layer_factor,
    over_rank,
)
from predictors.models.flux.adapters.names import (
    UP,
    Half,
    foreign_kind,
    format_of,
    read_name,
)
from predictors.models.flux.adapters.places import PARTS, TRANSFORMER, Piece, Places
from predictors.models.flux.folder import part_folders
from predictors.models.flux.tensors import with_defaults
from predictors.settings import MOST_RANK, Settings

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one linear of diffusers' layout: `up @ down`."""

    down: Array
    """(rank, in_features)."""
    up: Array
    """(out_features, rank), the layer's factor folded in."""

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter as read from its file."""

    file: str
    """The file's name, without its folder."""
    kind: str
    """Tool whose spelling its names have."""
    digest: str
    """SHA-256 of the changes, in hexadecimal digits: the same in every spelling."""
    changes: Mapping[str, Change]
    """By diffusers' path with its part in front, in alphabetical order."""


def read_stored(
    path: Path, places: Places, max_rank: int = MOST_RANK, root: Path | None = None
) -> StoredAdapter:
    """The adapter in the file or folder at `path`, whose links may lead into `root` only.

    Raises `InvalidRequest` naming what does not fit.
    """
    files = find_files(path, root)
    with StrictFile(files.weights, files.name) as file:
        halves = _meanings(file, places)
        configs = read_metadata(file.metadata, file.name)
        if files.config is not None:
            if configs:
                raise InvalidRequest(
                    f"{file.name} has a config of its own and {files.config.name} beside it: "
                    "remove one"
                )
            where = files.config.name
            raw = read_small_file(files.config, MAX_CONFIG_BYTES)
            config = read_peft_config(parse_object(raw, where), where)
            configs = {half.part: config for half in halves.values()}
        layers = group_layers(file, halves)
        for layer in layers:
            check_layer(file, layer, max_rank)
        changes = _changes(file, layers, configs, max_rank)
        return StoredAdapter(
            file=files.name,
            kind=format_of(min(halves, key=lambda name: halves[name].part != TRANSFORMER)),
            digest=_digest(changes),
            changes=changes,
        )


def read_places(folders: Mapping[str, Path]) -> Places:
    """Of the checkpoint with these folders of its parts. Raises `EngineFailed`."""
    return Places(
        {
            part: with_defaults(
                part, read_json(folders[part], "config.json", f"{part}/config.json")
            )
            for part in PARTS
        }
    )


def summarise_stored(name: str, stored: StoredAdapter) -> AdapterSummary:
    linears = Counter(path.partition(".")[0] for path in stored.changes)
    changes = stored.changes.values()
    return AdapterSummary(
        name=name,
        file=stored.file,
        format=stored.kind,
        digest=stored.digest,
        rank=max(change.rank for change in changes),
        linears=dict(linears),
        num_values=sum(change.down.size + change.up.size for change in changes),
    )


def describe_adapter(
    name: str,
    path: Path,
    checkpoint: Path,
    settings: Settings,
    components: Mapping[str, Path] = MappingProxyType({}),
) -> AdapterSummary:
    """The adapter at `path` as a server of `checkpoint` would load it; `components` are folders of
    parts that replace its own. Reads the whole file, without torch.

    Raises `ServingError` with the start's own message for one that is not served.
    """
    places = read_places(part_folders(checkpoint, components))
    return summarise_stored(
        name, read_stored(path, places, settings.flux.lora_max_rank or MOST_RANK)
    )


# -- names -----------------------------------------------------------------------------------------
def _meanings(file: StrictFile, places: Places) -> dict[str, Half]:
    """The meaning of every tensor; raises `InvalidRequest` naming the first that has none."""
    if not file.headers:
        raise InvalidRequest(f"{file.name} has no tensors")
    found: dict[str, Half] = {}
    left = []
    for name in file.headers:
        if kind := foreign_kind(name, places):
            raise InvalidRequest(f"{file.name} holds {kind}, which is not served: {named(name)}")
        half = read_name(name, places)
        if half is None:
            left.append(name)
        else:
            found[name] = half
    if left:
        raise InvalidRequest(
            f"{file.name} holds {len(left)} of {len(file.headers)} tensors that have no place in "
            f"this checkpoint, such as {named(left[0])}: it is an adapter of another model, or of "
            "a kind that is not served"
        )
    if len(adapters := sorted({half.adapter for half in found.values()} - {""})) > 1:
        raise InvalidRequest(f"{file.name} holds several adapters: {named(', '.join(adapters))}")
    return found


# -- values ----------------------------------------------------------------------------------------
def _changes(
    file: StrictFile,
    layers: list[AdapterLayer],
    configs: Mapping[str, AdapterConfig],
    max_rank: int,
) -> dict[str, Change]:
    found: dict[str, Change] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        name, half = layer.first
        scaled, _ = layer.halves.get(UP, layer.first)
        down, up = layer.read(file)
        up = up * np.float32(layer_factor(file, layer, configs.get(half.part), len(down)))
        if not np.abs(up).max(initial=0.0) <= LARGEST:
            raise InvalidRequest(
                f"{file.name}: {named(scaled)} times its factor is beyond {LARGEST:.0e}"
            )
        for piece in layer.place.pieces:
            if piece.path in found:
                raise InvalidRequest(
                    f"{file.name} changes {piece.path} twice: by {named(sources[piece.path])} "
                    f"and {named(name)}"
                )
            sources[piece.path] = name
            change = _cut(down, up, piece)
            if change.rank > max_rank:
                raise InvalidRequest(over_rank(file, name, change.rank, max_rank))
            if change.up.any() or not up.any():  # a fused layer may leave some of its parts alone
                found[piece.path] = change
    return dict(sorted(found.items()))


def _cut(down: Array, up: Array, piece: Piece) -> Change:
    """One linear's share of a layer: its rows, and the ranks that are not zero in all of them."""
    if not piece.rows:
        return Change(down, up)
    own = np.concatenate([up[start:stop] for start, stop in piece.rows])
    is_used: NDArray[np.bool_] = np.any(own, axis=0)
    if is_used.all():
        return Change(down, own)
    is_used[0] |= not is_used.any()  # a change of rank 0 would be none
    return Change(down[is_used], np.ascontiguousarray(own[:, is_used]))


def _digest(changes: Mapping[str, Change]) -> str:
    digest = hashlib.sha256()
    for path, change in changes.items():
        digest.update(f"{path} {change.down.shape} {change.up.shape}\n".encode())
        digest.update(np.ascontiguousarray(change.down).data)
        digest.update(np.ascontiguousarray(change.up).data)
    return digest.hexdigest()
