"""Steps of films in the vision tower: in the graphs of pictures, and on their own. The kernels run
in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.vision.pixels import PreparedPicture
from predictors.compute.device.graphs import Graphs
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.tower import VisionTower
from predictors.models.qwen3_vl.vision.encoder import Encoder as OtherEncoder
from predictors.models.qwen3_vl.vision.grid import VisionShape as OtherShape
from predictors.models.qwen3_vl.vision.tower import VisionTower as OtherTower
from tests.chat.vision.test_pictures import PLACEMENT, RECIPE, SHAPE, patches_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
OTHER = OtherShape(
    depth=3, hidden=48, heads=2, mlp=100, out=40, patch=2, temporal_patch=2, channels=3, merge=2,
    table_side=6, deepstack=(0, 1),
)  # fmt: skip
ENCODERS = ("qwen2.5", "qwen3")


def encoder_of(name: str) -> Encoder | OtherEncoder:
    """Of a small tower with random weights."""
    torch.manual_seed(2)
    if name == "qwen3":
        return OtherEncoder(OtherTower(OTHER).requires_grad_(False), PLACEMENT)
    return Encoder(VisionTower(SHAPE).requires_grad_(False), PLACEMENT)


def runner(name: str, frames: int, *, is_fused: bool) -> PictureRunner:
    """Without graphs: kernels take seconds in the interpreter."""
    graphs = Graphs("test", PLACEMENT)
    given = (encoder_of(name), PLACEMENT, graphs)
    return PictureRunner(*given, max_pixels=64 * 4, is_fused=is_fused, frames=frames)


@pytest.fixture(scope="module", params=ENCODERS)
def pair(request: pytest.FixtureRequest) -> tuple[PictureRunner, PictureRunner]:
    """Plain and fused, for films."""
    return runner(request.param, 2, is_fused=False), runner(request.param, 2, is_fused=True)


def step_of(grid: tuple[int, int], seed: int = 0) -> PreparedPicture:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(grid[0] * grid[1], 2 * SHAPE.patch_values, generator=generator)
    return PreparedPicture(b"", grid, 0, values, frames=2)


def decoded_step() -> PreparedPicture:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (2, 16, 12, 3), generator=generator, dtype=torch.uint8)
    return PreparedPicture(b"", (8, 6), 192, frames, RECIPE, frames=2)


def test_a_step_has_the_same_features_in_its_bucket_and_on_its_own(
    pair: tuple[PictureRunner, PictureRunner],
) -> None:
    plain, fused = (each.encode(step_of((4, 6))).features for each in pair)
    assert torch.allclose(fused, plain, rtol=1e-4, atol=1e-4)


def test_a_decoded_step_is_cut_into_the_patches_that_it_has(
    pair: tuple[PictureRunner, PictureRunner],
) -> None:
    step, (plain, fused) = decoded_step(), pair
    frames = [PreparedPicture(b"", step.grid, 192, frame, RECIPE) for frame in step.values]
    first, second = (plain._values(frame) for frame in frames)
    rows = fused._rows(64)
    fused._fill(step, rows[:48])
    width = SHAPE.patch_values
    assert torch.equal(rows[:48, :width], first)
    assert torch.allclose(rows[:48, width : 2 * width], second - first)
    assert not rows[:, 2 * width :].any()
    assert not torch.equal(first, second)


def test_a_step_of_two_equal_frames_is_a_picture(
    pair: tuple[PictureRunner, PictureRunner],
) -> None:
    picture, plain = patches_of((4, 6)), pair[0]
    doubled = torch.cat((picture.values, picture.values), 1)
    step = PreparedPicture(b"", picture.grid, 0, doubled, frames=2)
    found, expected = plain.encode(step).features, plain.encode(picture).features
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    torn = torch.cat((picture.values, -picture.values), 1)
    other = plain.encode(PreparedPicture(b"", picture.grid, 0, torn, frames=2)).features
    assert not torch.allclose(other, expected, rtol=0.01, atol=0.01)


def test_a_step_before_leaves_no_trace_in_the_rows_of_a_picture(
    pair: tuple[PictureRunner, PictureRunner],
) -> None:
    fused, picture = pair[1], patches_of((4, 6))
    rows = fused._rows(64)
    fused._fill(step_of((8, 8)), rows)
    fused._fill(picture, rows[:24])
    assert torch.equal(rows[:24, : SHAPE.patch_values], picture.values)
    assert not rows[:24, SHAPE.patch_values :].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_without_films_the_graphs_are_as_wide_as_a_picture(name: str) -> None:
    usual, filming = (runner(name, frames, is_fused=True) for frames in (1, 2))
    assert usual._rows(64).shape == (64, 16)
    assert filming._rows(64).shape == (64, 32)
    names, others = ([each.name for each in m.warm_shapes()] for m in (usual, filming))
    assert names == others
