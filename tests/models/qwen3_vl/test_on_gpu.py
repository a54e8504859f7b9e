"""Qwen3-VL on a GPU: graphs with DeepStack inputs, QK norm in the paged kernels, the vision tower's
kernels in bfloat16. Tokens are those of transformers on the CPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from predictors.chat.request import Sampling
from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.vision.pixels import PatchFormat, PreparedPicture
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import place
from predictors.models.qwen3_vl.vision.encoder import Encoder
from predictors.models.qwen3_vl.vision.grid import VisionShape
from predictors.models.qwen3_vl.vision.tower import VisionTower
from predictors.settings import ComputeSettings
from tests.chat.reference import Reference
from tests.chat.room import Room
from tests.models.qwen3_vl.conftest import open_room
from tests.models.qwen3_vl.test_parity import conversations
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

# heads of 72 as 8B has them; 2B and 4B have 64
SHAPE = VisionShape(
    depth=4, hidden=288, heads=4, mlp=304, out=256, patch=16, temporal_patch=2, channels=3,
    merge=2, table_side=12, deepstack=(0, 2),
)  # fmt: skip
FORMAT = PatchFormat((0.5,) * 3, (0.5,) * 3, 1 / 255, SHAPE.patch, SHAPE.merge)
GRIDS = [(2, 2), (8, 8), (18, 22), (2, 60), (30, 30)]


@pytest.fixture(scope="module")
def gpu(checkpoint: Path) -> Room:
    """Float32, prompts cut at 96 tokens, caches on."""
    settings = {"prefill_chunk": 96, "page_tokens": 16, "prefix_cache": "on"}
    return open_room(checkpoint, compile="auto", device="cuda", dtype="float32", **settings)


def test_conversations_are_answered_as_by_generate_and_again_from_the_caches(
    gpu: Room, reference: Reference
) -> None:
    requests = conversations()
    expected = [reference.answer(request) for request in requests]
    assert gpu.answers(requests) == expected
    assert gpu.answers(requests) == expected
    assert [gpu.answer(request) for request in requests[:6]] == expected[:6]


def test_an_untied_head_is_answered_alike(untied_checkpoint: Path) -> None:
    requests = conversations()
    reference = Reference.load(untied_checkpoint)
    room = open_room(untied_checkpoint, compile="auto", device="cuda", dtype="float32")
    assert room.answers(requests) == [reference.answer(request) for request in requests]


def test_mixed_traffic_makes_the_host_wait_for_nothing_and_captures_nothing(gpu: Room) -> None:
    drawn = Sampling(temperature=1.0, top_k=20, frequency_penalty=0.3)
    requests = [
        dataclasses.replace(request, sampling=drawn if i % 3 else request.sampling, seed=i)
        for i, request in enumerate(conversations())
    ]
    jobs = [gpu.job(request) for request in requests]
    before = gpu.engine.guard.check()  # another test's engine compiled on this thread too
    with no_host_syncs():
        while jobs or gpu.engine.busy:
            while jobs and gpu.engine.admit(jobs[0]):
                jobs.pop(0)
            gpu.engine.step(gpu.engine.active)
    assert gpu.engine.guard.check() == before
    assert gpu.engine._graphs.count_after_ready == 0


def tower() -> VisionTower:
    torch.manual_seed(2)
    return VisionTower(SHAPE).requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> PictureRunner:
    """Warm, in bfloat16, up to 640 patches."""
    placement = place(ComputeSettings(device="cuda"))
    encoder = Encoder(tower().to(placement.device, placement.dtype), placement)
    graphs = Graphs("test", placement)
    made = PictureRunner(encoder, placement, graphs, max_pixels=640 * SHAPE.patch**2)
    for each in made.warm_shapes():
        each.run()
    graphs.seal()
    return made


def decoded(size: tuple[int, int], grid: tuple[int, int]) -> PreparedPicture:
    generator = torch.Generator().manual_seed(sum(size))
    levels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    return PreparedPicture(b"", grid, 0, levels, FORMAT)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_levels_of_a_picture_are_those_of_float32(
    pictures: PictureRunner, grid: tuple[int, int]
) -> None:
    picture = decoded((grid[0] * 17, grid[1] * 11), grid)
    placement = place(ComputeSettings(device="cpu", compile="off"))
    exact = PictureRunner(Encoder(tower(), placement), placement, Graphs("cpu", placement))
    expected = exact.encode(picture).features
    found = pictures.encode(picture).features.cpu().float()
    assert found.shape == expected.shape == (3, grid[0] * grid[1] // 4, SHAPE.out)
    for level, wide in zip(found, expected, strict=True):
        assert (level - wide).norm() < 0.03 * wide.norm()
    assert torch.equal(pictures.encode(picture).features.cpu().float(), found)
    assert pictures._graphs.count_after_ready == 0


def test_a_picture_is_launched_without_waiting(pictures: PictureRunner) -> None:
    prepared = PreparedPicture(b"", (10, 12), 0, torch.zeros(120, SHAPE.patch_values))
    torch.cuda.synchronize()
    with no_host_syncs():
        for picture in (prepared, decoded((90, 70), (6, 8)), decoded((300, 200), (30, 30))):
            pictures.encode(picture)
