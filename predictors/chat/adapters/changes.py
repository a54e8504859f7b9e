"""The product of low-rank adapters over the rows of a pass, each row with its own: in plain torch,
whose bits depend on nothing beside a row, and as few matmuls for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from predictors.chat.adapters.tables import AdapterTables

SlotScales = Sequence[tuple[int, float]]
"""The slots of a row's adapters with their scales, in the order of `AdapterMix`."""


class RowChanges(Protocol):
    """The adapters of all rows of one pass."""

    def added(self, out: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
        """`out` (rows, out_features), the layer's output for `x` (rows, in_features), with each
        row's adapters added. May overwrite `out`."""


@dataclass(frozen=True, slots=True)
class PlainChanges:
    """One adapter after the other over all rows; a row without it keeps its bits.

    `rank_rows` (adapters, max_rank) int64; `scales` (adapters, rows or 1, 1) in the dtype of the
    pass, 0 where a row does not have the adapter.
    """

    tables: AdapterTables
    rank_rows: Tensor
    scales: Tensor

    def added(self, out: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
        table = self.tables.of_layer(layer)
        widths = list(table.sizes.part_features)
        for rows, scale in zip(self.rank_rows.unbind(), self.scales.unbind(), strict=True):
            downs = table.down.index_select(1, rows).unbind()
            ups = table.up.index_select(0, rows).split(widths, 1)
            changes = [(x @ down.t()) @ up for down, up in zip(downs, ups, strict=True)]
            change = changes[0] if len(changes) == 1 else torch.cat(changes, 1)
            out = torch.where(scale != 0, out + scale * change, out)
        return out


@dataclass(frozen=True, slots=True)
class DenseChanges:
    """Every rank row of every slot over all rows, those of other rows times zero. Can be captured.

    `weights` (rows or 1, rank rows) in the dtype of the pass are the scales.
    """

    tables: AdapterTables
    weights: Tensor

    def added(self, out: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
        """Overwrites `out`."""
        table, weights = self.tables.of_layer(layer), self.weights[:, None]
        parts = len(table.sizes.part_features)
        inner = torch.mm(x, table.down.flatten(0, 1).t()).view(len(x), parts, -1)
        inner = inner * weights
        if inner.dtype == torch.float16:  # zero times an overflow of another row's adapter
            inner = torch.where(weights != 0, inner, 0)
        first = 0
        for part, width in enumerate(table.sizes.part_features):
            end = first + width
            out[:, first:end].addmm_(inner[:, part], table.up[:, first:end])
            first = end
        return out


def plain_scales(
    tables: AdapterTables,
    rows: Sequence[SlotScales],
    dtype: torch.dtype,
    at_least: int = 0,
) -> tuple[Tensor, Tensor]:
    """`rank_rows` and `scales` of `PlainChanges` for these rows, on the CPU: of at least so many
    adapters, the missing ones with scale 0."""
    used = sorted({slot for row in rows for slot, _ in row}, key=tables.order)
    spare = [slot for slot in range(tables.slots) if slot not in used]
    used += spare[: max(0, at_least - len(used))]
    scales = torch.zeros(len(used), len(rows), 1, dtype=dtype)
    for i, row in enumerate(rows):
        for slot, scale in row:
            scales[used.index(slot), i] = scale
    return torch.stack([tables.rank_rows(slot) for slot in used]), scales


def dense_weights(tables: AdapterTables, rows: Sequence[SlotScales]) -> Tensor:
    """`weights` (rows, slots) float32 of `DenseChanges`, not yet repeated for the rank rows of a
    slot, on the CPU."""
    weights = [[0.0] * tables.slots for _ in rows]
    for own, row in zip(weights, rows, strict=True):
        for slot, scale in row:
            own[slot] = scale
    return torch.tensor(weights)
