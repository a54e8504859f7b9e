"""The operations of `operations.py` on a GPU. Knows kernels and matmuls; knows no block and no
request.

A decode step of one sequence is bound by reading the weights once: there a linear with its norm,
gate or residual is one kernel that streams the weight (36 layers of five kernels). With more rows,
and for prompts, cuBLAS multiplies and one Triton kernel lies between two matmuls. Nothing is read
back and nothing depends on values, so a whole pass can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat.decoder.attention_kernels import (
    decode_attention_kernel,
    prompt_attention_kernel,
    turn_kernel,
)
from predictors.chat.decoder.fused_linears import (
    OneRow,
    Rows,
    chained,
    is_chained,
    power_of_two,
)
from predictors.chat.decoder.operations import Angles, HeadNorms
from predictors.chat.decoder.paged import TILE

PROMPT_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the rows of a decode step stand; int64 on the device. `slots`, `lengths` (keys before
    the new one) and `positions` (rows,); `tables` (slots, pages)."""

    slots: Tensor
    lengths: Tensor
    positions: Tensor
    tables: Tensor


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory of the decode kernels for up to `rows` rows, see `decode_attention_kernel`."""

    partial: Tensor
    weights: Tensor
    arrivals: Tensor

    @classmethod
    def of(cls, rows: int, kv_heads: int, head_dim: int, device: torch.device) -> Scratch:
        """For all widths up to `rows`."""
        cells = max(row * splits_for(row) for row in range(1, rows + 1)) * kv_heads
        return cls(
            torch.empty(cells, 16, head_dim, device=device),
            torch.empty(cells, 2, 16, device=device),
            torch.zeros(rows * kv_heads, dtype=torch.int32, device=device),
        )


def splits_for(rows: int) -> int:
    """In how many parts a sequence's keys are read at once, so that few sequences fill the GPU."""
    return min(32, max(2, 128 // rows))


def _keys_at_once(rows: int) -> int:
    return 128 if rows <= 8 else 64


class _Decode:
    """Attention of a decode step."""

    def __init__(self, standing: Standing, scratch: Scratch) -> None:
        self._standing = standing
        self._scratch = scratch

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        """`angles` are of all positions."""
        at, scratch, kv_heads = self._standing, self._scratch, cache.shape[-2]
        rows, heads = len(qkv), qkv.shape[-1] // head_dim - 2 * kv_heads
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
            BLOCK=_keys_at_once(rows),
            SPLITS=splits,
            EPS=0.0 if norms is None else norms.query.eps,
            HAS_NORM=norms is not None,
            IS_CHAINED=is_chained(),
            num_warps=4,
            **chained(),
        )
        return out


class FusedOne(OneRow, _Decode):
    """A decode step of one sequence."""


class FusedMany(Rows, _Decode):
    """A decode step of more."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Where a prompt pass's rows stand; int64 on the device. `places` (rows,), where each row's key
    goes; of each tile of TILE rows its slot, the index of its first token and how many rows are
    real; `tables` (slots, pages)."""

    places: Tensor
    slots: Tensor
    starts: Tensor
    rows: Tensor
    tables: Tensor


class FusedPrompt(Rows):
    """A pass over pieces of prompts, each from a new tile on."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        """Overwrites qkv."""
        tiles, kv_heads = self._tiles, cache.shape[-2]
        heads = qkv.shape[-1] // head_dim - 2 * kv_heads
        sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": head_dim}
        turn_kernel[(len(qkv),)](
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


def _norm_weights(norms: HeadNorms | None, unused: Tensor) -> tuple[Tensor, Tensor]:
    return (unused, unused) if norms is None else (norms.query.weight, norms.key.weight)
