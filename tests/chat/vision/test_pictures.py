"""Which shape a picture runs in, and that it gives the same tokens there; the kernels run in
Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from predictors.chat.memory import MOST_BUCKET
from predictors.chat.vision.pictures import (
    ALIGNED,
    LEAST_BUCKET,
    PictureRunner,
    buckets_for,
)
from predictors.chat.vision.pixels import PatchFormat, PreparedPicture
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import place
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.grid import VisionShape, plan_grid
from predictors.models.qwen2_5_vl.vision.operations import Plain
from predictors.models.qwen2_5_vl.vision.tower import VisionTower
from predictors.settings import ComputeSettings
from tests import triton_interpreter
from tests.tools.syncs import count_host_syncs

pytest.importorskip("predictors.models.qwen2_5_vl.vision.fused")
assert triton_interpreter

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

SHAPE = VisionShape(
    depth=2, hidden=32, heads=2, mlp=40, out=24, patch=2, temporal_patch=2, channels=3, merge=2,
    window=16, full_blocks=frozenset({1}),
)  # fmt: skip
RECIPE = PatchFormat((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255, SHAPE.patch, SHAPE.merge)
PLACEMENT = place(ComputeSettings(device="cpu", compile="off"))


@given(st.integers(784, 13_000_000), st.integers(784, 13_000_000), st.integers(1, 9000), st.data())
def test_a_picture_of_any_allowed_budget_has_a_graph(
    allowed: int, asked: int, width: int, data: st.DataObject
) -> None:
    height = data.draw(st.integers(max(1, width // 8), width * 8))
    asked = min(asked, allowed)
    rows, columns = (side // 14 for side in smart_resize(height, width, 28, 784, asked))
    if min(rows, columns) > 2:  # a thinner one is rounded up to a row of tokens
        buckets = buckets_for(min(allowed // 14**2, MOST_BUCKET))
        assert rows * columns <= max(buckets) or rows * columns > MOST_BUCKET


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    """Small, with random weights."""
    torch.manual_seed(2)
    return VisionTower(SHAPE).requires_grad_(False)


@pytest.fixture(scope="module")
def fused(tower: VisionTower) -> PictureRunner:
    """Warm, with one bucket and what lies beyond."""
    graphs = Graphs("test", PLACEMENT)
    made = PictureRunner(
        Encoder(tower, PLACEMENT), PLACEMENT, graphs, max_pixels=64 * 4, is_fused=True
    )
    for each in made.warm_shapes():
        each.run()
    graphs.seal()
    return made


def patches_of(grid: tuple[int, int], seed: int = 0) -> PreparedPicture:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(grid[0] * grid[1], SHAPE.patch_values, generator=generator)
    return PreparedPicture(b"", grid, 0, values)


def expected(tower: VisionTower, patches: PreparedPicture) -> Tensor:
    plan = plan_grid(*patches.grid, SHAPE)
    tokens: Tensor = tower(patches.values, Plain(plan, SHAPE.heads, SHAPE.merge))
    return tokens


@given(st.integers(1, 70_000), st.data())
def test_buckets_waste_at_most_an_eighth(most: int, data: st.DataObject) -> None:
    buckets = buckets_for(most)
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % ALIGNED == 0 for bucket in buckets)
    assert buckets[-1] >= most
    assert len(buckets) == 1 or buckets[-2] < most
    count = data.draw(st.integers(1, most))
    bucket = next(b for b in buckets if b >= count)
    assert bucket <= max(LEAST_BUCKET, count * 9 / 8 + ALIGNED)


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (6, 12)])
def test_a_picture_has_the_same_tokens_in_its_bucket_and_beyond(
    tower: VisionTower, fused: PictureRunner, grid: tuple[int, int]
) -> None:
    patches = patches_of(grid)
    found = fused.encode(patches).embedding
    assert found.shape == (grid[0] * grid[1] // 4, SHAPE.out)
    assert torch.allclose(found, expected(tower, patches), rtol=1e-4, atol=1e-5)


def test_the_picture_before_leaves_no_trace(tower: VisionTower, fused: PictureRunner) -> None:
    first, second = patches_of((8, 8), 1), patches_of((4, 6), 2)
    kept = fused.encode(second).embedding
    before = kept.clone()
    fused.encode(first)
    assert torch.equal(kept, before)  # its own memory
    assert torch.equal(fused.encode(second).embedding, before)
    assert torch.allclose(before, expected(tower, second), rtol=1e-4, atol=1e-5)


def test_a_new_grid_captures_nothing_after_warming(fused: PictureRunner) -> None:
    names = [each.name for each in fused.warm_shapes()]
    assert names == ["vision attention", "vision 64", "vision"]
    fused._capture(64)  # warming again
    assert fused._graphs.count == 1
    for grid in ((4, 2), (2, 12)):
        fused.encode(patches_of(grid))
    assert fused._graphs.count == 1
    assert fused._graphs.count_after_ready == 0


def test_encoding_a_picture_reads_nothing_back(tower: VisionTower, fused: PictureRunner) -> None:
    plain = PictureRunner(Encoder(tower, PLACEMENT), PLACEMENT, Graphs("test", PLACEMENT))
    picture = torch.zeros(30, 20, 3, dtype=torch.uint8)
    decoded = PreparedPicture(b"", (8, 8), 600, picture, RECIPE)
    for pictures in (plain, fused):
        for patches in (patches_of((6, 8)), decoded):
            pictures.encode(patches)
    with count_host_syncs() as found:
        plain.encode(patches_of((6, 8)))
        plain.encode(decoded)
        fused._fill(decoded, fused._rows(64))
    assert found.syncs == 0, found


def test_a_decoded_picture_has_the_tokens_of_its_patches(
    tower: VisionTower, fused: PictureRunner
) -> None:
    generator = torch.Generator().manual_seed(3)
    picture = torch.randint(0, 256, (37, 21, 3), generator=generator, dtype=torch.uint8)
    plain = PictureRunner(Encoder(tower, PLACEMENT), PLACEMENT, Graphs("test", PLACEMENT))
    decoded = PreparedPicture(b"", (8, 6), 777, picture, RECIPE)
    assert torch.allclose(
        fused.encode(decoded).features, plain.encode(decoded).features, rtol=1e-4, atol=1e-5
    )


def test_on_the_cpu_a_picture_runs_in_its_own_shape_to_the_bit(tower: VisionTower) -> None:
    plain = PictureRunner(
        Encoder(copy.deepcopy(tower), PLACEMENT), PLACEMENT, Graphs("test", PLACEMENT)
    )
    assert [each.name for each in plain.warm_shapes()] == ["vision"]
    patches = patches_of((6, 10))
    assert torch.equal(plain.encode(patches).embedding, expected(tower, patches))
