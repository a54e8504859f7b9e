"""The operations of `operations.py` on a GPU. Knows kernels and matmuls; knows no block and no
request.

A decode step of one sequence is bound by reading the weights once: there a linear with its norm,
gate or residual is one kernel that streams the weight (36 layers of five kernels). With more rows,
and for prompts, cuBLAS multiplies and one Triton kernel lies between two matmuls. Nothing is read
back and nothing depends on values, so a whole pass can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from predictors.qwen_vl.modules.attention_kernels import (
    decode_attention_kernel,
    prompt_attention_kernel,
    turn_kernel,
)
from predictors.qwen_vl.modules.layers import RMSNorm
from predictors.qwen_vl.modules.operations import Angles
from predictors.qwen_vl.modules.paged import TILE
from predictors.qwen_vl.modules.row_kernels import gate_kernel, norm_kernel
from predictors.qwen_vl.modules.skinny_kernels import row_kernel
from predictors.qwen_vl.modules.token_kernels import (
    best_kernel,
    best_of_parts_kernel,
    feed_kernel,
)

HOPPER = (9, 0)
BEST_BLOCK = 2048
SKINNY_BLOCK = 1024
WIDE = 2**16
PROMPT_BLOCK = 64
GATE_BLOCK = 1024


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


class _Rows:
    """Linears over a matrix of rows."""

    def normed_linear(self, x: Tensor, norm: RMSNorm, layer: nn.Linear) -> Tensor:
        """See `Operations`."""
        return torch.addmm(layer.bias, _normed(x, norm), layer.weight.t())

    def added_linear(self, stream: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
        """See `Operations`; overwrites the stream."""
        return stream.addmm_(x, layer.weight.t())

    def gated_linear(self, x: Tensor, norm: RMSNorm, layer: nn.Linear) -> Tensor:
        """See `Operations`."""
        return gated(torch.mm(_normed(x, norm), layer.weight.t()))

    def logits(self, x: Tensor, norm: RMSNorm, head: nn.Linear) -> Tensor:
        """See `Operations`."""
        return torch.mm(_normed(x, norm), head.weight.t()).to(torch.float32)


class _OneRow:
    """Linears over one row."""

    def normed_linear(self, x: Tensor, norm: RMSNorm, layer: nn.Linear) -> Tensor:
        """See `Operations`."""
        return skinny(x, layer, norm=norm)

    def added_linear(self, stream: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
        """See `Operations`."""
        return skinny(x, layer, residual=stream)

    def gated_linear(self, x: Tensor, norm: RMSNorm, layer: nn.Linear) -> Tensor:
        """See `Operations`."""
        return skinny(x, layer, norm=norm, is_gated=True)

    def logits(self, x: Tensor, norm: RMSNorm, head: nn.Linear) -> Tensor:
        """See `Operations`."""
        return skinny(x, head, norm=norm, dtype=torch.float32)


class _Decode:
    """Attention of a decode step."""

    def __init__(self, standing: Standing, scratch: Scratch) -> None:
        self._standing = standing
        self._scratch = scratch

    def attend(self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int) -> Tensor:
        """See `Operations`; `angles` are of all positions."""
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
            cache.stride(0),
            at.tables.stride(0),
            SCALE=head_dim**-0.5,
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=head_dim,
            PAGE=cache.shape[2],
            BLOCK=_keys_at_once(rows),
            SPLITS=splits,
            IS_CHAINED=is_chained(),
            num_warps=4,
            **_chained(),
        )
        return out


class FusedOne(_OneRow, _Decode):
    """A decode step of one sequence."""


class FusedMany(_Rows, _Decode):
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


class FusedPrompt(_Rows):
    """A pass over pieces of prompts, each from a new tile on."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles

    def attend(self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int) -> Tensor:
        """See `Operations`; overwrites qkv."""
        tiles, kv_heads = self._tiles, cache.shape[-2]
        heads = qkv.shape[-1] // head_dim - 2 * kv_heads
        sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": head_dim}
        turn_kernel[(len(qkv),)](
            qkv,
            *angles,
            cache,
            tiles.places,
            cache.stride(0),
            **sizes,
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


class Memory(Protocol):
    """What `Slots` keeps, as far as kernels need it."""

    feed: Tensor
    seen: Tensor
    counts: Tensor
    counted: Tensor

    def keep(self, slots: Tensor, numbers: Tensor, tokens: Tensor) -> None:
        """See `Slots.keep`."""
        ...


def fed(memory: Memory, slots: Tensor, numbers: Tensor, embedding: Tensor) -> Tensor:
    """The embeddings (rows, hidden) of tokens number `numbers` of `slots`, which are counted from
    now on; as `Slots.fed`."""
    x = embedding.new_empty(len(slots), embedding.shape[1])
    feed_kernel[(len(slots),)](
        memory.feed,
        slots,
        numbers,
        embedding,
        x,
        memory.seen,
        memory.counts,
        memory.counted,
        VOCAB=memory.seen.shape[1],
        DIM=embedding.shape[1],
        BLOCK=power_of_two(embedding.shape[1]),
    )
    return x


def best(memory: Memory, logits: Tensor, ints: Tensor, floats: Tensor) -> Tensor:
    """As `choosing.choose` where every row takes its most likely token."""
    rows, vocab = logits.shape
    parts = -(-vocab // BEST_BLOCK)
    peaks = logits.new_empty(rows, parts)
    tokens = ints.new_empty(rows, parts)
    chosen = ints.new_empty(rows)
    best_kernel[(rows, parts)](
        logits,
        ints[0],
        *floats[:3].unbind(),
        memory.seen,
        memory.counts,
        peaks,
        tokens,
        VOCAB=vocab,
        BLOCK=BEST_BLOCK,
    )
    best_of_parts_kernel[(rows,)](
        peaks, tokens, chosen, NUM_PARTS=parts, BLOCK=power_of_two(parts), num_warps=1
    )
    memory.keep(ints[0], ints[1], chosen)
    return chosen


def skinny(
    x: Tensor,
    layer: nn.Linear,
    *,
    norm: RMSNorm | None = None,
    residual: Tensor | None = None,
    is_gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """layer(norm(x)) + residual, or the gated product, for x (1, features): one kernel."""
    features = x.shape[1]
    weight, bias = layer.weight, layer.bias
    width = len(weight) // 2 if is_gated else len(weight)
    out = torch.empty(1, width, dtype=dtype or x.dtype, device=x.device)
    block, warps = _tiling(width, is_gated)
    row_kernel[(-(-width // block),)](
        x,
        weight,
        x,
        x if bias is None else bias,
        x if norm is None else norm.weight,
        x if residual is None else residual,
        out,
        K=features,
        N=width,
        EPS=0.0 if norm is None else norm.eps,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_SCALES=False,
        IS_GATED=is_gated,
        IS_CHAINED=is_chained(),
        BLOCK_N=block,
        BLOCK_K=SKINNY_BLOCK,
        num_warps=warps,
        **_chained(),
    )
    return out


def _tiling(width: int, is_gated: bool) -> tuple[int, int]:
    """Features per program and warps: the fastest on an H200 at this model's sizes."""
    if is_gated:
        return 8, 8
    return (2, 4) if width < WIDE else (16, 4)


@lru_cache(maxsize=1)
def is_chained() -> bool:
    """Whether a kernel may begin before the one before it has ended, up to its own wait: Hopper's
    programmatic launch, which hides the microseconds between two short kernels."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= HOPPER


def _chained() -> dict[str, bool]:
    return {"launch_pdl": True} if is_chained() else {}


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    out = torch.empty_like(x)
    norm_kernel[(len(x),)](
        x, norm.weight, out, EPS=norm.eps, DIM=x.shape[1], BLOCK=power_of_two(x.shape[1])
    )
    return out


def gated(wide: Tensor) -> Tensor:
    """silu(first half) * second half of wide (rows, 2 n)."""
    width = wide.shape[1] // 2
    out = wide.new_empty(len(wide), width)
    grid = (len(wide), -(-width // GATE_BLOCK))
    gate_kernel[grid](wide, out, DIM=width, BLOCK=GATE_BLOCK)
    return out


def power_of_two(size: int) -> int:
    """The least power of two that is not less."""
    return 1 << (size - 1).bit_length()
