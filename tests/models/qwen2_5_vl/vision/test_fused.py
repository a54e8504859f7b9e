"""The vision tower's kernels against the plain operations in float64, in Triton's interpreter;
matmuls are the CPU's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from predictors.chat.decoder.layers import RMSNorm
from predictors.compute.kernels.attention import sdpa
from predictors.models.qwen2_5_vl.vision.grid import (
    VisionShape,
    packed_grid,
    plan_grid,
)
from predictors.models.qwen2_5_vl.vision.operations import Plain
from predictors.models.qwen2_5_vl.vision.tower import VisionTower
from tests import triton_interpreter

fused = pytest.importorskip("predictors.models.qwen2_5_vl.vision.fused")
assert triton_interpreter

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

SHAPE = VisionShape(
    depth=2, hidden=24, heads=1, mlp=100, out=48, patch=2, temporal_patch=2, channels=3, merge=2,
    window=16, full_blocks=frozenset({1}),
)  # fmt: skip
GRIDS = [(8, 8), (2, 2), (10, 10), (2, 30), (16, 8)]  # in patches: whole, small, ragged, thin


def shape_with(heads: int, head_dim: int, window: int = 16) -> VisionShape:
    return replace(SHAPE, heads=heads, hidden=heads * head_dim, window=window)


def tower_of(shape: VisionShape) -> VisionTower:
    torch.manual_seed(2)
    tower = VisionTower(shape).requires_grad_(False)
    for name, weight in tower.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.3 * torch.randn(weight.shape))
    return tower


def fused_for(grid: tuple[int, int], patches: int, shape: VisionShape) -> fused.FusedVision:
    ints = packed_grid(*grid, patches, shape)
    return fused.FusedVision(ints, patches, shape, shape.frequencies(), sdpa)


def plain_for(grid: tuple[int, int], shape: VisionShape) -> Plain:
    plan = plan_grid(*grid, shape).moved(lambda x: x.double() if x.is_floating_point() else x)
    return Plain(plan, shape.heads, shape.merge)


def assert_near(found: Tensor, exact: Tensor) -> None:
    """float32 arithmetic: far under a thousandth."""
    assert found.isfinite().all()
    assert (found.double() - exact).norm() <= 3e-6 * exact.norm()


def in_window_order(grid: tuple[int, int], shape: VisionShape, patches: int, width: int) -> Tensor:
    """Random rows, and NaN where the bucket has no patch."""
    torch.manual_seed(4)
    rows = torch.full((patches, width), float("nan"))
    rows[: grid[0] * grid[1]] = torch.randn(grid[0] * grid[1], width)
    return rows


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    ("heads", "head_dim"), [(2, 80), (1, 32), (3, 24), (2, 8), (1, 72)]
)  # the checkpoint's, the small one's, and what no tile fits
def test_attention_equals_the_plain_one_for_heads_of_any_size(
    heads: int, head_dim: int, is_full: bool
) -> None:
    shape, grid = shape_with(heads, head_dim), (10, 12)
    qkv = in_window_order(grid, shape, 128, 3 * shape.hidden)
    n = grid[0] * grid[1]
    exact = plain_for(grid, shape).attend(qkv[:n].double(), is_full)
    found = fused_for(grid, 128, shape).attend(qkv.clone(), is_full)
    assert_near(found[:n], exact)


@pytest.mark.parametrize("window", [4, 12])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_of_any_size_see_themselves_only(grid: tuple[int, int], window: int) -> None:
    shape = shape_with(1, 16, window)
    n = grid[0] * grid[1]
    qkv = in_window_order(grid, shape, n + 12, 3 * shape.hidden)
    exact = plain_for(grid, shape).attend(qkv[:n].double(), is_full=False)
    found = fused_for(grid, n + 12, shape).attend(qkv, is_full=False)
    assert_near(found[:n], exact)
    assert not found[n:].any()


def test_adding_and_norming_in_one_pass_equals_both() -> None:
    norm = RMSNorm(80, 1e-6).requires_grad_(False)
    norm.weight.copy_(torch.randn(80, generator=torch.Generator().manual_seed(1)))
    stream, update = torch.randn(2, 12, 80, generator=torch.Generator().manual_seed(2))
    plain, ops = plain_for((2, 6), SHAPE), fused_for((2, 6), 12, SHAPE)
    exact = RMSNorm(80, 1e-6).double().requires_grad_(False)
    exact.weight.copy_(norm.weight)
    expected = plain.added(stream.double(), update.double(), exact)
    assert_near(ops.normed(stream, norm), exact(stream.double()))
    for found, wide in zip(ops.added(stream.clone(), update, norm), expected, strict=True):
        assert_near(found, wide)


def test_the_gate_equals_the_plain_one() -> None:
    wide = torch.randn(8, 2 * 1100, generator=torch.Generator().manual_seed(1))
    ops = fused_for((2, 4), 8, SHAPE)
    assert_near(ops.gated(wide), plain_for((2, 4), SHAPE).gated(wide.double()))


@pytest.mark.parametrize(("grid", "padding"), list(zip(GRIDS, (0, 20, 20, 0, 4), strict=True)))
def test_the_fused_tower_equals_the_plain_one(grid: tuple[int, int], padding: int) -> None:
    tower, n = tower_of(SHAPE), grid[0] * grid[1]
    wide = VisionTower(SHAPE).double().requires_grad_(False)
    wide.load_state_dict(tower.state_dict())
    patches = in_window_order(grid, SHAPE, n + padding, SHAPE.patch_values)
    exact = wide(patches[:n].double(), plain_for(grid, SHAPE))
    found = tower(patches, fused_for(grid, n + padding, SHAPE))
    assert_near(found[: n // 4], exact)


def test_an_input_may_have_columns_that_no_patch_has() -> None:
    tower = tower_of(SHAPE)
    layer, second = tower.patch_embed, tower.second_frame
    patches = torch.randn(12, SHAPE.patch_values, generator=torch.Generator().manual_seed(1))
    spare = torch.nn.functional.pad(patches, (0, 4))
    found = fused_for((2, 6), 12, SHAPE).embed(spare, layer, second)
    assert_near(
        found, plain_for((2, 6), SHAPE).embed(patches.double(), layer.double(), second.double())
    )
