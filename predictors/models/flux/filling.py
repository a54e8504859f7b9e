"""Fills the modules of a FLUX.1 checkpoint from stored tensors, and quantises weights that are held
in fp8 alone as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from predictors.compute.checkpoint.shards import Source
from predictors.compute.checkpoint.values import check_magnitudes
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import E4M3, RowScaled, quantize_rows
from predictors.errors import EngineFailed

WIDE_BYTES = 2**29
"""At most about this much of the weights is on the device before it is quantised."""


def fill_module(
    module: nn.Module,
    stored: Source,
    placement: Placement,
    sources: Callable[[str], tuple[str, ...]],
    *,
    quantises: bool = False,
) -> None:
    """Give every meta tensor of `module` its weights: `sources(name)` stacked along dim 0. With
    `quantises` those of its fp8 weights are stored in another type, without scales."""
    places: dict[int, Tensor] = {}  # tied parameters are one object and stay one
    state = {}
    pairs: list[tuple[Tensor, str]] = []  # all at once: many reads are under way together
    for name, meta in module.state_dict(keep_vars=True).items():
        if id(meta) not in places:
            # fp8 weights and their scales stay what they are
            is_scaled = meta.dtype == E4M3 or name.endswith(".weight_scale")
            dtype = meta.dtype if is_scaled else placement.dtype
            place = torch.empty(meta.shape, dtype=dtype, device=placement.device)
            if not (quantises and is_scaled):
                pairs += _pairs(name, place, stored, sources(name))
            places[id(meta)] = place
        state[name] = places[id(meta)]
    _copy(stored, pairs)
    if quantises:
        _fill_narrow(_scaled_pairs(state, stored, sources), stored, placement.dtype)
    module.load_state_dict(state, strict=True, assign=True)


def _scaled_pairs(
    state: Mapping[str, Tensor], stored: Source, sources: Callable[[str], tuple[str, ...]]
) -> Iterator[tuple[RowScaled, str]]:
    """As `_pairs`, of the fp8 weights in `state`."""
    for name, place in state.items():
        if place.dtype == E4M3:
            row = 0
            for values, source in _pairs(name, place, stored, sources(name)):
                end = row + len(values)
                yield RowScaled(values, state[f"{name}_scale"][row:end]), source
                row = end


def _pairs(
    name: str, place: Tensor, stored: Source, sources: Iterable[str]
) -> Iterator[tuple[Tensor, str]]:
    """The parts of `place` along dim 0, each with the stored name of its values."""
    row = 0
    for source in sources:
        shape = stored.shape(source)
        target = place[row : row + shape[0]]
        if tuple(shape[2:]) == (1, 1) and target.ndim == 2:  # 1x1 convolutions of old checkpoints
            target = target[:, :, None, None]
        yield target, source
        row += shape[0]
    if row != place.shape[0]:
        raise EngineFailed(f"{name} takes {place.shape[0]} rows; the checkpoint has {row}")


def _fill_narrow(
    pairs: Iterable[tuple[RowScaled, str]], stored: Source, dtype: torch.dtype
) -> None:
    """Read each target's values in `dtype` and quantise them, a part at a time."""
    batch: list[tuple[RowScaled, Tensor, str]] = []
    for target, name in pairs:
        batch.append((target, torch.empty_like(target.values, dtype=dtype), name))
        if sum(wide.nbytes for _, wide, _ in batch) >= WIDE_BYTES:
            _quantise(batch, stored)
    _quantise(batch, stored)


def _quantise(batch: list[tuple[RowScaled, Tensor, str]], stored: Source) -> None:
    _copy(stored, [(wide, name) for _, wide, name in batch])
    for target, wide, _ in batch:
        for place, found in zip(target, quantize_rows(wide), strict=True):
            place.copy_(found)
    batch.clear()


def _copy(stored: Source, pairs: Sequence[tuple[Tensor, str]]) -> None:
    stored.copy_into(pairs)
    check_magnitudes(pairs)
