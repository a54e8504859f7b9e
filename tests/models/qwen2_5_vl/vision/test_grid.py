"""How grids are laid out, for any grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.models.qwen2_5_vl.vision.grid import (
    PackedGrid,
    VisionShape,
    arrange,
    most_windows,
    num_packed,
    packed_grid,
    plan_grid,
)

SHAPE = VisionShape(
    depth=1, hidden=32, heads=2, mlp=64, out=16, patch=14, temporal_patch=2, channels=3, merge=2,
    window=112, full_blocks=frozenset(),
)  # fmt: skip
GROUPS = st.integers(1, 40)


@given(GROUPS, GROUPS)
def test_every_patch_lies_in_one_window_and_comes_back(rows: int, columns: int) -> None:
    grid = arrange(2 * rows, 2 * columns, SHAPE)
    count = 4 * rows * columns
    assert torch.equal(grid.patches.sort().values, torch.arange(count))
    assert int(grid.lengths.sum()) == count
    assert int(grid.lengths.max()) <= SHAPE.window_patches
    plan = plan_grid(2 * rows, 2 * columns, SHAPE)
    assert torch.equal(grid.order[plan.back], torch.arange(rows * columns))
    ends = grid.lengths.cumsum(0)
    for start, end in zip((ends - grid.lengths).tolist(), ends.tolist(), strict=True):
        for places in (grid.row[start:end] // 8, grid.column[start:end] // 8):
            assert bool((places == places[0]).all())


@given(GROUPS, GROUPS, st.integers(1, 8))
def test_no_grid_has_more_windows_than_a_bucket_holds(rows: int, columns: int, side: int) -> None:
    windows = -(-rows // side) * -(-columns // side)
    assert windows <= most_windows(rows * columns, side)


@given(GROUPS, GROUPS, st.integers(0, 50))
def test_a_packed_grid_equals_the_plan(rows: int, columns: int, spare: int) -> None:
    count, patches = 4 * rows * columns, 4 * (rows * columns + spare)
    ints = packed_grid(2 * rows, 2 * columns, patches, SHAPE)
    assert len(ints) == num_packed(patches, SHAPE)
    packed = PackedGrid.unpacked(ints, patches, SHAPE)
    if patches % 16 == 0:  # no kernel is compiled twice
        assert all(part.storage_offset() % 2 == 0 for part in packed)
    grid, plan = arrange(2 * rows, 2 * columns, SHAPE), plan_grid(2 * rows, 2 * columns, SHAPE)
    assert packed.real.tolist() == [count]
    assert torch.equal(packed.order.sort().values, torch.arange(patches))
    assert torch.equal(packed.order[:count], grid.patches)
    assert torch.equal(packed.back[: rows * columns], plan.back)
    assert torch.equal(packed.row[:count], grid.row)
    assert torch.equal(packed.column[:count], grid.column)
    assert torch.equal(packed.lengths[: len(grid.lengths)], grid.lengths)
    others = packed.lengths[len(grid.lengths) :]
    assert int(others.sum()) == -4 * spare
    assert int(others.abs().max()) <= SHAPE.window_patches
    ends = (packed.starts + packed.lengths.abs())[packed.lengths != 0]
    assert torch.equal(ends, packed.lengths.abs().cumsum(0)[packed.lengths != 0])


def test_a_grid_larger_than_its_pass_is_refused() -> None:
    with pytest.raises(RuntimeError):
        packed_grid(8, 8, 60, SHAPE)
