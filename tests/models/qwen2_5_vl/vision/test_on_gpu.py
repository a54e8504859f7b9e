"""Pictures on a GPU: compiled kernels, graphs, and no waiting of the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.vision.pixels import PatchFormat, PreparedPicture
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import place
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.grid import VisionShape, plan_grid
from predictors.models.qwen2_5_vl.vision.operations import Plain
from predictors.models.qwen2_5_vl.vision.tower import VisionTower
from predictors.settings import ComputeSettings
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

# heads as the released checkpoint has them
SHAPE = VisionShape(
    depth=3, hidden=320, heads=4, mlp=340, out=256, patch=14, temporal_patch=2, channels=3,
    merge=2, window=112, full_blocks=frozenset({1}),
)  # fmt: skip
RECIPE = PatchFormat((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255, SHAPE.patch, SHAPE.merge)


@pytest.fixture(scope="module")
def pictures() -> PictureRunner:
    """Warm, in bfloat16, up to 640 patches."""
    torch.manual_seed(2)
    placement = place(ComputeSettings(device="cuda"))
    tower = VisionTower(SHAPE).requires_grad_(False).to(placement.device, placement.dtype)
    graphs = Graphs("test", placement)
    made = PictureRunner(Encoder(tower, placement), placement, graphs, max_pixels=640 * 196)
    for each in made.warm_shapes():
        each.run()
    graphs.seal()
    return made


def decoded(size: tuple[int, int], grid: tuple[int, int]) -> PreparedPicture:
    generator = torch.Generator().manual_seed(sum(size))
    levels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    return PreparedPicture(b"", grid, 0, levels, RECIPE)


def exact(pictures: PictureRunner, patches: PreparedPicture) -> Tensor:
    """In float32 on the CPU."""
    tower = VisionTower(SHAPE).requires_grad_(False)
    tower.load_state_dict(pictures._encoder._tower.state_dict())
    placement = place(ComputeSettings(device="cpu", compile="off"))
    plain = PictureRunner(Encoder(tower, placement), placement, Graphs("test", placement))
    values = plain._values(patches)
    tokens: Tensor = tower(values, Plain(plan_grid(*patches.grid, SHAPE), 4, 2))
    return tokens


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (18, 22), (2, 60), (30, 30)])
def test_a_picture_has_the_tokens_of_float32(
    pictures: PictureRunner, grid: tuple[int, int]
) -> None:
    patches = decoded((grid[0] * 17, grid[1] * 11), grid)
    expected, found = exact(pictures, patches), pictures.encode(patches).embedding.cpu().float()
    assert (found - expected).norm() < 0.03 * expected.norm()
    again = replace(patches, key=b"again")
    assert torch.equal(pictures.encode(again).embedding.cpu().float(), found)
    assert pictures._graphs.count_after_ready == 0


def test_a_picture_is_launched_without_waiting(pictures: PictureRunner) -> None:
    prepared = PreparedPicture(b"", (10, 12), 0, torch.zeros(120, SHAPE.patch_values))
    torch.cuda.synchronize()
    with no_host_syncs():
        for patches in (prepared, decoded((90, 70), (6, 8)), decoded((300, 200), (30, 30))):
            pictures.encode(patches)
