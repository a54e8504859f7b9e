"""The operations of `operations.py` as matmuls and Triton kernels of a GPU.

A decode step of one sequence is bound by reading the weights once: there a linear with its norm,
gate or residual is one kernel that streams the weight (36 layers of five kernels). With up to 64
rows on Hopper, and one row of a wide stream, a kernel loads weights while the one before still
runs. Elsewhere cuBLAS multiplies
and one Triton kernel runs between two matmuls. Nothing depends on values, so a whole pass can be
captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat.decoder.attention_kernels import (
    decode_attention_kernel,
    prompt_attention_kernel,
    rotate_kernel,
)
from predictors.chat.decoder.few_rows import MOST_ROWS, FewRowsLinears, SplitScratch
from predictors.chat.decoder.fused_linears import (
    OneRowLinears,
    RowsLinears,
    chained,
    is_chained,
    power_of_two,
)
from predictors.chat.decoder.hopper_linears import HopperLinears
from predictors.chat.decoder.operations import Angles, HeadNorms, Layer
from predictors.chat.decoder.paged import TILE
from predictors.compute.kernels.hopper_linear import is_available, takes

PROMPT_BLOCK = 64
CHAINED_HIDDEN = 3072
"""From this width of the stream on, chained linears read the weights of one row faster than the
kernels of one row: 3,584 in 3.9 instead of 4.4 ms per step on an H200, 2,048 in 2.0 instead of 1.9.
"""
RESIDENT = 400
"""Programs of decode attention over 128 keys at a time that an H200 holds at once."""


@dataclass(frozen=True, slots=True)
class DecodePlaces:
    """Places of a decode step's rows in the cache; int64 on the device. `slots`, `lengths` (keys
    before the new one) and `positions` (rows,); `tables` (slots, pages)."""

    slots: Tensor
    lengths: Tensor
    positions: Tensor
    tables: Tensor


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    partial: Tensor
    weights: Tensor
    arrivals: Tensor
    linears: SplitScratch

    @classmethod
    def of(cls, rows: int, kv_heads: int, head_dim: int, device: torch.device) -> DecodeScratch:
        """For steps of up to `rows` rows."""
        cells = max(row * splits_for(row) for row in range(1, rows + 1)) * kv_heads
        return cls(
            torch.empty(cells, 16, head_dim, device=device),
            torch.empty(cells, 2, 16, device=device),
            torch.zeros(rows * kv_heads, dtype=torch.int32, device=device),
            SplitScratch.of(device),
        )


def splits_for(rows: int) -> int:
    """Parts of a sequence's keys that are read at once, so that few sequences fill the GPU."""
    return min(32, max(2, 128 // rows))


def _tiling(rows: int, kv_heads: int) -> dict[str, int]:
    """Keys that a program of decode attention reads at a time (BLOCK), the keys from which on a
    sequence is cut in parts (LEAST), and the loads under way: the fastest on an H200."""
    if rows * kv_heads * splits_for(rows) > RESIDENT:
        return {"BLOCK": 64, "LEAST": 256, "num_stages": 2}
    return {"BLOCK": 128, "LEAST": 256 if rows >= 32 else 128, "num_stages": 3}


class _DecodeAttention:
    def __init__(self, places: DecodePlaces, scratch: DecodeScratch) -> None:
        self._places = places
        self._scratch = scratch

    def attend(
        self,
        qkv: Tensor,
        angles: Angles,
        cache: Tensor,
        head_dim: int,
        norms: HeadNorms | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`angles` are of all positions. Written to `out`, if it is given."""
        at, scratch, kv_heads = self._places, self._scratch, cache.shape[-2]
        rows, heads = len(qkv), qkv.shape[-1] // head_dim - 2 * kv_heads
        if out is None:
            out = qkv.new_empty(rows, heads * head_dim)
        splits = splits_for(rows)
        decode_attention_kernel[(rows, kv_heads, splits)](
            qkv,
            *angles,
            at.positions,
            cache,
            at.tables,
            at.slots,
            at.lengths,
            out,
            scratch.partial,
            scratch.weights,
            scratch.arrivals,
            *_norm_weights(norms, qkv),
            cache.stride(0),
            at.tables.stride(0),
            SCALE=head_dim**-0.5,
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=head_dim,
            PAGE=cache.shape[2],
            SPLITS=splits,
            EPS=0.0 if norms is None else norms.query.eps,
            HAS_NORM=norms is not None,
            IS_CHAINED=is_chained(),
            num_warps=4,
            **_tiling(rows, kv_heads),
            **chained(),
        )
        return out


class FusedDecodeOne(OneRowLinears, _DecodeAttention):
    """A decode step of one sequence."""


class FusedDecodeFew(FewRowsLinears, _DecodeAttention):
    """A decode step of 2 to `MOST_ROWS` sequences."""

    def __init__(self, places: DecodePlaces, scratch: DecodeScratch) -> None:
        FewRowsLinears.__init__(self, scratch.linears)
        _DecodeAttention.__init__(self, places, scratch)


class FusedDecodeHopper(HopperLinears, FusedDecodeFew):
    """A decode step of up to `MOST_ROWS` sequences on Hopper."""


class FusedDecodeMany(RowsLinears, _DecodeAttention):
    """A decode step of several sequences."""


def decode_operations(
    places: DecodePlaces, scratch: DecodeScratch, layer: Layer
) -> FusedDecodeOne | FusedDecodeFew | FusedDecodeMany:
    """The operations for as many rows as `places` has. `layer` is one of the decoder's, behind a
    norm."""
    rows = len(places.slots)
    if rows > MOST_ROWS:
        return FusedDecodeMany(places, scratch)
    is_chained = is_available() and takes(layer.weight)
    if rows == 1 and not (is_chained and layer.weight.shape[1] >= CHAINED_HIDDEN):
        return FusedDecodeOne(places, scratch)
    return (FusedDecodeHopper if is_available() else FusedDecodeFew)(places, scratch)


@dataclass(frozen=True, slots=True)
class PromptTiles:
    """Places of a prompt pass's rows; int64 on the device. `places` (rows,): where each row's key
    goes. Of each tile of TILE rows: its slot, the index of its first token and the number of real
    rows. `tables` (slots, pages)."""

    places: Tensor
    slots: Tensor
    starts: Tensor
    rows: Tensor
    tables: Tensor


class _PromptAttention:
    def __init__(self, tiles: PromptTiles) -> None:
        self._tiles = tiles

    def attend(
        self,
        qkv: Tensor,
        angles: Angles,
        cache: Tensor,
        head_dim: int,
        norms: HeadNorms | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Overwrites qkv. Written to `out`, if it is given."""
        tiles, kv_heads = self._tiles, cache.shape[-2]
        heads = qkv.shape[-1] // head_dim - 2 * kv_heads
        sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": head_dim}
        rotate_kernel[(len(qkv),)](
            qkv,
            *angles,
            cache,
            tiles.places,
            *_norm_weights(norms, qkv),
            cache.stride(0),
            **sizes,
            EPS=0.0 if norms is None else norms.query.eps,
            HAS_NORM=norms is not None,
            BLOCK_HEADS=power_of_two(heads + kv_heads),
            num_warps=4,
        )
        if out is None:
            out = qkv.new_empty(len(qkv), heads * head_dim)
        prompt_attention_kernel[(len(tiles.rows), kv_heads)](
            qkv,
            cache,
            tiles.tables,
            tiles.slots,
            tiles.starts,
            tiles.rows,
            out,
            cache.stride(0),
            tiles.tables.stride(0),
            SCALE=head_dim**-0.5,
            **sizes,
            PAGE=cache.shape[2],
            TILE=TILE,
            BLOCK=PROMPT_BLOCK,
            BLOCK_GROUP=power_of_two(heads // kv_heads),
            num_warps=8,
            num_stages=2,
        )
        return out


class FusedPrompt(RowsLinears, _PromptAttention):
    """A pass over parts of prompts; each part begins on a new tile."""


class FusedPromptHopper(HopperLinears, _PromptAttention):
    """A pass over parts of prompts of up to `MOST_ROWS` rows on Hopper."""

    def __init__(self, tiles: PromptTiles, scratch: DecodeScratch) -> None:
        HopperLinears.__init__(self, scratch.linears)
        _PromptAttention.__init__(self, tiles)


def prompt_operations(
    tiles: PromptTiles, scratch: DecodeScratch
) -> FusedPrompt | FusedPromptHopper:
    """The operations for as many rows as `tiles` has."""
    if len(tiles.places) <= MOST_ROWS and is_available():
        return FusedPromptHopper(tiles, scratch)
    return FusedPrompt(tiles)


class FusedMixed(RowsLinears):
    """A pass over parts of prompts, as in `FusedPrompt`, and behind them the rows of a decode step.
    The linears read their weights once for both; each kind of rows has its own attention."""

    def __init__(
        self, tiles: PromptTiles, places: DecodePlaces, scratch: DecodeScratch, everywhere: Angles
    ) -> None:
        """`everywhere` are the angles of all positions."""
        self._prompts = _PromptAttention(tiles)
        self._decoding = _DecodeAttention(places, scratch)
        self._everywhere = everywhere

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        """`angles` are those of the prompts' rows. Overwrites qkv."""
        first = len(angles.cos)
        out = qkv.new_empty(len(qkv), qkv.shape[-1] - 2 * cache.shape[-2] * head_dim)
        self._prompts.attend(qkv[:first], angles, cache, head_dim, norms, out[:first])
        rows = qkv[first:], self._everywhere, cache, head_dim, norms, out[first:]
        self._decoding.attend(*rows)
        return out


def _norm_weights(norms: HeadNorms | None, unused: Tensor) -> tuple[Tensor, Tensor]:
    return (unused, unused) if norms is None else (norms.query.weight, norms.key.weight)
