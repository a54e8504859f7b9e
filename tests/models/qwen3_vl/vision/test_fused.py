"""The vision tower's kernels against the plain operations in float64, in Triton's interpreter;
matmuls are the CPU's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.vision.pixels import PreparedPicture
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import place
from predictors.compute.kernels.attention import sdpa
from predictors.models.qwen3_vl.vision.encoder import Encoder
from predictors.models.qwen3_vl.vision.grid import VisionShape, packed_grid
from predictors.models.qwen3_vl.vision.tower import PlainVision, VisionTower
from predictors.settings import ComputeSettings
from tests import triton_interpreter

fused = pytest.importorskip("predictors.models.qwen3_vl.vision.fused")
assert triton_interpreter

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

SHAPE = VisionShape(
    depth=3, hidden=48, heads=2, mlp=100, out=40, patch=2, temporal_patch=2, channels=3, merge=2,
    table_side=6, deepstack=(0, 1),
)  # fmt: skip
GRIDS = [(8, 8), (2, 2), (10, 4), (2, 30)]


def tower_of(shape: VisionShape) -> VisionTower:
    torch.manual_seed(2)
    tower = VisionTower(shape).requires_grad_(False)
    for name, weight in tower.named_parameters():
        if "norm" in name:
            weight.add_(0.3 * torch.randn(weight.shape))
    return tower


def fused_for(grid: tuple[int, int], patches: int, shape: VisionShape) -> fused.FusedVision:
    ints = packed_grid(*grid, patches, shape)
    return fused.FusedVision(ints, patches, shape, shape.frequencies(), sdpa)


def plain_for(grid: tuple[int, int], shape: VisionShape) -> PlainVision:
    patches = grid[0] * grid[1]
    ints = packed_grid(*grid, patches, shape)
    return PlainVision(ints, patches, shape, shape.frequencies())


def assert_near(found: Tensor, exact: Tensor) -> None:
    """float32 arithmetic: far under a thousandth."""
    assert found.isfinite().all()
    assert (found.double() - exact).norm() <= 3e-6 * exact.norm()


def rows(count: int, total: int, width: int) -> Tensor:
    """Random rows, and NaN beyond `count`."""
    made = torch.full((total, width), float("nan"))
    made[:count] = torch.randn(count, width, generator=torch.Generator().manual_seed(4))
    return made


@pytest.mark.parametrize(("heads", "head_dim"), [(2, 64), (1, 72), (3, 24), (2, 8)])
def test_attention_equals_the_plain_one_whatever_a_head_measures(heads: int, head_dim: int) -> None:
    shape, grid = replace(SHAPE, heads=heads, hidden=heads * head_dim), (6, 6)
    n = grid[0] * grid[1]
    qkv = rows(n, 44, 3 * shape.hidden)
    exact = plain_for(grid, shape).attend(qkv[:n].double())
    assert_near(fused_for(grid, 44, shape).attend(qkv.clone())[:n], exact)


def test_adding_and_norming_in_one_kernel_equals_both() -> None:
    norm = nn.LayerNorm(72).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    norm.weight.copy_(torch.randn(72, generator=generator))
    norm.bias.copy_(torch.randn(72, generator=generator))
    stream, update = torch.randn(2, 12, 72, generator=generator) + 5.0
    wide = nn.LayerNorm(72).double().requires_grad_(False)
    wide.load_state_dict(norm.state_dict())
    expected = plain_for((2, 6), SHAPE).added(stream.double(), update.double(), wide)
    found = fused_for((2, 6), 12, SHAPE).added(stream.clone(), update, norm)
    for each, exact in zip(found, expected, strict=True):
        assert_near(each, exact)


@pytest.mark.parametrize(("grid", "padding"), list(zip(GRIDS, (0, 20, 20, 4), strict=True)))
def test_the_fused_tower_equals_the_plain_one(grid: tuple[int, int], padding: int) -> None:
    tower, n = tower_of(SHAPE), grid[0] * grid[1]
    wide = VisionTower(SHAPE).double().requires_grad_(False)
    wide.load_state_dict(tower.state_dict())
    patches = rows(n, n + padding, SHAPE.patch_values)
    exact = wide(patches[:n].double(), plain_for(grid, SHAPE))
    found = tower(patches, fused_for(grid, n + padding, SHAPE))
    assert found.shape == (3, (n + padding) // 4, SHAPE.out)
    assert_near(found[:, : n // 4], exact)


def test_a_picture_has_the_same_features_in_its_bucket_and_beyond() -> None:
    placement = place(ComputeSettings(device="cpu", compile="off"))
    encoder = Encoder(tower_of(replace(SHAPE, depth=2, deepstack=(0,))), placement)
    graphs = Graphs("test", placement)
    made = PictureRunner(encoder, placement, graphs, max_pixels=64 * 4, is_fused=True)
    for each in made.warm_shapes():
        each.run()
    for grid in ((2, 4), (8, 8), (10, 12)):
        n = grid[0] * grid[1]
        picture = PreparedPicture(b"", grid, 0, rows(n, n, SHAPE.patch_values))
        found, exact = made.encode(picture).features, encoder.encode(picture.values, grid)
        assert torch.allclose(found, exact, rtol=1e-4, atol=1e-5)
    assert graphs.count == 1
