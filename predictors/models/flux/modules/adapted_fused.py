"""The fused operations with adapters: see `adapted.py`. A linear takes two more launches, for any
number of rows and both streams.
"""

from __future__ import annotations

import torch
from torch import Tensor

from predictors.compute.kernels.fp8 import RowScaled
from predictors.compute.low_rank import LowRankTable, RankRows
from predictors.models.flux.modules.adapted import Adapters
from predictors.models.flux.modules.fused import Attention, Fused, FusedFp8
from predictors.models.flux.modules.low_rank_kernels import expand_kernel, shrink_kernel
from predictors.models.flux.modules.operations import (
    Activations,
    Layer,
    Operations,
    Streams,
    shared,
)

CHUNK = 4096
"""Features of a product that one program sums, at most: those of the MLP are split."""
BLOCK_RANKS = 64
SHRINK_TOKENS, SHRINK_INPUTS = 32, 128  # of a program's tile: small ones fill the device
EXPAND_TOKENS, EXPAND_OUTPUTS = 64, 256  # wide ones read the inner product less often


class AdaptedFused(Fused):
    """`Fused` with adapters. GELU follows where the low-rank part is added."""

    def __init__(self, attention: Attention, adapters: Adapters) -> None:
        super().__init__(attention)
        self._adapters = adapters

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        out = super().linear(x, layers, num_text)
        return _add_adapters(self._adapters, out, (x,), layers, num_text)

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        return _add_adapters(self._adapters, super().end(x, layer), (x,), shared(layer), 0)

    def _gelu_of(self, x: Tensor, up: Streams[Layer], num_text: int) -> Tensor:
        out = super().linear(x, up, num_text)
        return _add_adapters(self._adapters, out, (x,), up, num_text, has_gelu=True)

    def _joined(self, mixed: Tensor, wide: Tensor, down: Layer) -> Tensor:
        out = super()._joined(mixed, wide, down)
        return _add_adapters(self._adapters, out, (mixed, wide), shared(down), 0)


class AdaptedFusedFp8(FusedFp8):
    """`FusedFp8` with adapters. The low-rank part is not quantised, but reads the activations as
    the linear does, rounded to e4m3: no others are kept."""

    def __init__(
        self, attention: Attention, narrow_attention: Attention | None, adapters: Adapters
    ) -> None:
        super().__init__(attention, narrow_attention)
        self._adapters = adapters

    @property
    def unquantized(self) -> Operations:
        return AdaptedFused(self._attention, self._adapters)

    def linear(self, x: RowScaled, layers: Streams[Layer], num_text: int) -> Tensor:
        out = super().linear(x, layers, num_text)
        return _add_adapters(self._adapters, out, (x.values,), layers, num_text, x.scales)


def _add_adapters(
    adapters: Adapters,
    out: Tensor,
    pieces: tuple[Tensor, ...],
    layers: Streams[Layer],
    num_text: int,
    token_scales: Tensor | None = None,
    *,
    has_gelu: bool = False,
) -> Tensor:
    """`out` (rows, tokens, features), contiguous, with the low-rank part of `layers` added in
    place. `pieces` are their input side by side: (rows, tokens, in), or e4m3 to be multiplied with
    `token_scales` (rows, tokens, 1)."""
    tables = Streams(adapters.tables[layers.text], adapters.tables[layers.image])
    num_text = 0 if layers.are_one else num_text
    inner = _shrunk(pieces, tables, adapters.chosen, num_text)
    _expand(out, inner, tables, adapters.chosen, num_text, token_scales, has_gelu=has_gelu)
    return out


def _shrunk(
    pieces: tuple[Tensor, ...], tables: Streams[LowRankTable], chosen: RankRows, num_text: int
) -> Tensor:
    """The products with `down`, without scales: float32 (splits, rows, tokens, parts, n). Those of
    rows whose adapters change nothing here are not written."""
    (rows, num_tokens, first), width = pieces[0].shape, chosen.index.shape[1]
    table, second = tables.image, sum(piece.shape[2] for piece in pieces[1:])
    num_parts, chunk = len(table.sizes.part_features), _chunk(first, second)
    splits, block = (first + second) // chunk, min(BLOCK_RANKS, width)
    text_tiles, tiles = _tiles(num_text, num_tokens, SHRINK_TOKENS)
    shape = (splits, rows, num_tokens, num_parts, width)
    inner = torch.empty(shape, dtype=torch.float32, device=table.down.device)
    shrink_kernel[(tiles, rows, splits * num_parts * (width // block))](
        pieces[0],
        pieces[-1],
        table.down,
        table.used,
        chosen.index,
        inner,
        num_tokens,
        num_text,
        text_tiles,
        _distance(table.down, tables.text.down),
        _distance(table.used, tables.text.used),
        pieces[0].stride(0) // first,
        pieces[-1].stride(0) // pieces[-1].shape[2],
        N=width,
        PARTS=num_parts,
        TABLE_ROWS=table.num_rows,
        FIRST=first,
        SECOND=second,
        CHUNK=chunk,
        BLOCK_M=SHRINK_TOKENS,
        BLOCK_N=block,
        BLOCK_K=SHRINK_INPUTS,
        num_warps=4,
        num_stages=4,
    )
    return inner


def _expand(
    out: Tensor,
    inner: Tensor,
    tables: Streams[LowRankTable],
    chosen: RankRows,
    num_text: int,
    token_scales: Tensor | None,
    *,
    has_gelu: bool,
) -> None:
    splits, rows, num_tokens, num_parts, width = inner.shape
    table, of_part = tables.image, out.shape[2] // num_parts
    text_tiles, tiles = _tiles(num_text, num_tokens, EXPAND_TOKENS)
    expand_kernel[(tiles, rows, num_parts * -(-of_part // EXPAND_OUTPUTS))](
        out,
        inner,
        table.up,
        table.used,
        chosen.index,
        chosen.scales,
        chosen.scales if token_scales is None else token_scales,
        num_tokens,
        num_text,
        text_tiles,
        _distance(table.up, tables.text.up),
        _distance(table.used, tables.text.used),
        0 if token_scales is None else token_scales.stride(0),
        N=width,
        PARTS=num_parts,
        FEATURES=of_part,
        SPLITS=splits,
        BLOCK_M=EXPAND_TOKENS,
        BLOCK_N=min(BLOCK_RANKS, width),
        BLOCK_O=EXPAND_OUTPUTS,
        HAS_TOKEN_SCALES=token_scales is not None,
        HAS_GELU=has_gelu,
        num_warps=8,
        num_stages=2,
    )


def _tiles(num_text: int, num_tokens: int, block: int) -> tuple[int, int]:
    """Tiles of the text's tokens, and of all: none has tokens of both streams."""
    of_text = -(-num_text // block)
    return of_text, of_text - (num_text - num_tokens) // block


def _chunk(first: int, second: int) -> int:
    """The most features up to `CHUNK` that divide both pieces of an input."""
    splits = 1
    while (
        (first + second) % splits
        or (first + second) // splits > CHUNK
        or (second and first % ((first + second) // splits))
    ):
        splits += 1
    return (first + second) // splits


def _distance(image: Tensor, text: Tensor) -> int:
    """Elements from the picture's table to the text's, which lie anywhere on the device."""
    return (text.data_ptr() - image.data_ptr()) // image.element_size()
