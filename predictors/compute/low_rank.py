"""Low-rank adapters (LoRA) of linears: tables of rank rows on a device, and their product.

A rank row is one row of `down` and one of `up`. All tables of a model have the same R rows: an
adapter of rank r takes r of them, at the same positions in every table, and row 0 is always zero.
A row of a pass names its adapters' rank rows by index, so rows with different adapters share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from predictors.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The change of one linear: x -> x + (x down^T) up^T. float32 on the host.

    alpha / rank is part of `up`.
    """

    down: Tensor
    """(rank, in_features)."""
    up: Tensor
    """(out_features, rank)."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """One adapter as read from its files."""

    name: str
    digest: str
    """Of its values: two adapters of one digest draw the same."""
    changes: Mapping[str, LowRank]
    """By the path of the linear in the library that published the model, with the component in
    front: `transformer.transformer_blocks.0.attn.to_q`."""


class LinearSizes(NamedTuple):
    """One linear of ours. Its parts read the same input and have their own output features: query,
    key and value of an attention, which adapters change one by one."""

    in_features: int
    part_features: tuple[int, ...]
    """Output features of each part, in their order in the output."""

    @property
    def out_features(self) -> int:
        return sum(self.part_features)


@dataclass(frozen=True, slots=True, eq=False)
class RankRows:
    """The rank rows of each row of a pass, on the device; unused places hold row 0."""

    index: Tensor
    """int64 (rows, n)."""
    scales: Tensor
    """float32 (rows, n)."""


class LowRankTable:
    """The rank rows of one linear, on a device. All zero at first."""

    def __init__(
        self, sizes: LinearSizes, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.sizes = sizes
        self.num_rows = num_rows
        num_parts = len(sizes.part_features)
        self.down = torch.zeros(num_parts, num_rows, sizes.in_features, device=device, dtype=dtype)
        self.up = torch.zeros(num_rows, sizes.out_features, device=device, dtype=dtype)
        self.used = torch.zeros(num_rows, device=device, dtype=torch.uint8)
        """1 for the rank rows that change this linear."""
        # where each part begins in `down` seen as (parts * R, in)
        self.starts = torch.arange(num_parts, device=device) * num_rows

    @property
    def num_bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def write(self, rows: Tensor, changes: Mapping[int, LowRank]) -> None:
        """Overwrite the rank rows `rows`, int64 (r,) on the device: `changes` by part, of rank r at
        most; all else becomes zero. Engine thread, between steps: copies are in stream order.

        `changes` may be anywhere and of any float dtype. What `on_host` made is not waited for.
        """
        device, dtype = self.up.device, self.up.dtype
        down = torch.zeros(
            self.down.shape[0], len(rows), self.sizes.in_features, device=device, dtype=dtype
        )
        up = torch.zeros(len(rows), self.sizes.out_features, device=device, dtype=dtype)
        ends = _ends(self.sizes.part_features)
        for part, change in changes.items():
            begin, end = ends[part]
            down[part, : change.rank].copy_(change.down, non_blocking=True)
            up[: change.rank, begin:end].copy_(
                change.up.to(device, non_blocking=True).t(), non_blocking=True
            )
        self.down.index_copy_(1, rows, down)
        self.up.index_copy_(0, rows, up)
        self.used.index_fill_(0, rows, int(bool(changes)))


def add_low_rank(
    out: Tensor,
    x: Tensor | tuple[Tensor, ...],
    table: LowRankTable,
    chosen: RankRows,
    token_scales: Tensor | None = None,
) -> None:
    """Add each row's adapters to `out` (rows, tokens, out_features), the linear's output for `x`
    (rows, tokens, in_features), in place. `x` may come in pieces, side by side.

    `token_scales` (rows, tokens, 1), if given, are factors of `x` that are applied after the first
    product. Reads nothing back; all shapes are known, so it can be captured. On the CPU rows are
    taken one by one, since a matmul's bits depend on the number of rows.
    """
    pieces = x if isinstance(x, tuple) else (x,)
    if out.is_cuda or out.shape[0] == 1:
        _add_rows(out, pieces, table, chosen, token_scales)
        return
    for i in range(out.shape[0]):
        one = slice(i, i + 1)
        own = RankRows(chosen.index[one], chosen.scales[one])
        scales = None if token_scales is None else token_scales[one]
        _add_rows(out[one], tuple(piece[one] for piece in pieces), table, own, scales)


def _add_rows(
    out: Tensor,
    pieces: tuple[Tensor, ...],
    table: LowRankTable,
    chosen: RankRows,
    token_scales: Tensor | None,
) -> None:
    (rows, n), sizes = chosen.index.shape, table.sizes
    num_parts = len(sizes.part_features)
    places = (chosen.index[:, None] + table.starts[None, :, None]).flatten()
    down = table.down.flatten(0, 1).index_select(0, places).view(rows, num_parts * n, -1)
    up = table.up.index_select(0, chosen.index.flatten()).view(rows, n, -1)
    widths = [piece.shape[-1] for piece in pieces]
    shares = [share.transpose(1, 2) for share in down.split(widths, dim=-1)]
    inner = torch.bmm(pieces[0].to(down.dtype), shares[0])
    for piece, share in zip(pieces[1:], shares[1:], strict=True):
        inner.baddbmm_(piece.to(down.dtype), share)
    if token_scales is not None:
        inner.mul_(token_scales)
    parts = inner.view(rows, -1, num_parts, n).mul_(chosen.scales[:, None, None]).unbind(2)
    for part, (begin, end) in zip(parts, _ends(sizes.part_features), strict=True):
        out[..., begin:end].baddbmm_(part, up[..., begin:end])


def _ends(part_features: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each part in the output."""
    found, begin = [], 0
    for features in part_features:
        found.append((begin, begin + features))
        begin += features
    return found


class RankPool:
    """Which rank rows are free. Not thread-safe: it belongs to one engine thread."""

    def __init__(self, num_rows: int) -> None:
        """`num_rows` includes row 0, which is never given out."""
        self.capacity = num_rows - 1
        self._free = list(range(num_rows - 1, 0, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, name: str, rank: int) -> tuple[int, ...]:
        """Rank rows for the adapter `name`; raises `InvalidRequest` if too few are free."""
        if rank > len(self._free):
            raise InvalidRequest(
                f"adapter {name} has rank {rank}, but {len(self._free)} of the {self.capacity} "
                "rank rows are free: remove an adapter first, or start with more room"
            )
        return tuple(self._free.pop() for _ in range(rank))

    def give_back(self, rows: Iterable[int]) -> None:
        self._free += rows


def check_change(path: str, change: LowRank, in_features: int, out_features: int) -> None:
    """Raise `InvalidRequest` naming the linear if `change` does not fit it, or is not finite."""
    (rank, theirs_in), (theirs_out, up_rank) = change.down.shape, change.up.shape
    if (theirs_in, theirs_out) != (in_features, out_features) or rank != up_rank or not rank:
        raise InvalidRequest(
            f"{path} changes {theirs_in} features to {theirs_out} by ranks {rank} and {up_rank}; "
            f"the model has {in_features} to {out_features} there"
        )
    if not (change.down.isfinite().all() and change.up.isfinite().all()):
        raise InvalidRequest(f"{path} holds values that are not finite")


def on_host(change: LowRank, device: torch.device, dtype: torch.dtype) -> LowRank:
    """`change` in `dtype` on the host, in pinned memory if `device` is a GPU, so that a copy there
    waits for nothing. Any thread."""
    down, up = change.down.to(dtype), change.up.to(dtype)
    if device.type == "cuda":
        down, up = down.pin_memory(), up.pin_memory()
    return LowRank(down, up)
