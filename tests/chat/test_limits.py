"""How large the engine's pools and passes are, on a CPU and on a GPU that need not be there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from predictors.chat.limits import EngineLimits, free_bytes, free_pages, pixel_limits, plan_limits
from predictors.chat.memory import kv_bytes
from predictors.chat.pixel_bounds import PixelBounds, PixelLimits
from predictors.chat.vision.pixels import DEFAULT_MAX_PIXELS
from predictors.compute.device.placement import Placement
from predictors.models.qwen2_5_vl.config import read_shapes
from predictors.settings import InvalidSetting, QwenVLSettings
from tests.chat.room import CHECKPOINT

CPU = Placement(torch.device("cpu"), torch.float32, "off")
_, SHAPE, _ = read_shapes(CHECKPOINT)
GPU = Placement(torch.device("cuda"), torch.bfloat16, "inductor")


@pytest.fixture(autouse=True)
def a_gpu_with_a_gibibyte_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**30, 2**31))


def limits(placement: Placement, **settings: object) -> EngineLimits:
    chosen = QwenVLSettings(**settings)  # type: ignore[arg-type]
    return plan_limits(SHAPE, chosen, placement)


def test_a_cpu_keeps_one_decode_width_and_reads_prompts_one_by_one() -> None:
    found = limits(CPU)
    assert (found.slots, found.page_tokens) == (8, 16)
    assert found.decode_widths == (8,)
    assert found.chunk_widths == (64, 128, 256)
    assert found.num_pages == (8 + 4) * found.pages_per_slot  # spare slots too
    assert found.spare_slots == 4


def test_a_gpu_has_a_graph_for_every_few_rows() -> None:
    found = limits(GPU)
    assert (found.slots, found.page_tokens) == (64, 64)
    assert found.decode_widths == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert (found.chunk_widths[0], found.chunk_widths[-1]) == (16, 1536)
    assert len(found.chunk_widths) == 24


@pytest.mark.parametrize(
    ("placement", "more"),
    [
        (CPU, {}),
        (GPU, {"mixed_passes": False}),
        (GPU, {"deterministic": "on"}),
        (GPU, {"precision": "fp8"}),
    ],
)
def test_rows_of_prompts_and_of_decoding_share_passes_where_both_are_multiplied_alike(
    placement: Placement, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits(GPU).mixed_widths == ()  # a gibibyte has no room for the graphs
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**34, 2**35))
    usual = limits(GPU)
    assert usual.mixed_widths == usual.chunk_widths
    assert limits(placement, **more).mixed_widths == ()


def test_a_chunk_on_a_gpu_is_rounded_up_to_whole_tiles() -> None:
    assert limits(GPU, prefill_chunk=100).chunk_widths[-1] == 112
    assert limits(CPU, prefill_chunk=100).chunk_widths[-1] == 100


def test_a_deterministic_gpu_has_its_one_width_and_a_way_out() -> None:
    assert limits(GPU, deterministic="on", slots=6).decode_widths == (1, 8)
    assert limits(GPU, deterministic="on", slots=1).decode_widths == (1,)
    assert limits(CPU, deterministic="off", slots=6).decode_widths == (1, 2, 4, 6)


def test_pages_on_a_gpu_end_where_its_memory_does() -> None:
    text = SHAPE
    page_bytes = 2 * 2 * text.layers * text.kv_heads * text.head_dim * 64
    assert free_pages(text, 64, GPU, 2**30) == kv_bytes(2**30) // page_bytes
    assert free_bytes(QwenVLSettings(), CPU) is None
    assert free_pages(text, 64, CPU, None) is None
    assert limits(GPU, slots=10**6).num_pages == free_pages(text, 64, GPU, 2**30)


@pytest.mark.parametrize(("free_gib", "least", "most"), [(16, 8, 8.1), (130, 99, 99.5)])
def test_keys_and_values_leave_room_for_the_graphs(
    free_gib: float, least: float, most: float
) -> None:
    assert least <= kv_bytes(int(free_gib * 2**30)) / 2**30 <= most


def test_larger_graphs_of_pictures_take_their_room_from_the_keys() -> None:
    free = 100 * 2**30
    assert kv_bytes(free, 64) == kv_bytes(free, 5632) == kv_bytes(free)
    assert kv_bytes(free) - kv_bytes(free, 11264) == pytest.approx(0.8 * 6 * 2**30, rel=1e-6)
    assert kv_bytes(2**30, 11264) == 2**29


@dataclass(frozen=True)
class ReadAs:
    """A checkpoint's image processor, as far as `pixel_limits` looks at it."""

    bounds: PixelBounds
    patch: int = 14
    merge: int = 2


HUB = ReadAs(PixelBounds(3136, 12_845_056))


def pixels(images: ReadAs = HUB, **settings: int) -> PixelLimits:
    return pixel_limits(QwenVLSettings(**settings), images)  # type: ignore[arg-type]


def test_pixels_are_the_settings_or_the_checkpoints_within_reason() -> None:
    most = DEFAULT_MAX_PIXELS
    assert pixels() == PixelLimits(3136, most, most, 784)
    assert pixels(max_pixels=9_000_000) == PixelLimits(3136, 9_000_000, 9_000_000, 784)
    ample = pixels(max_pixels=9_000_000, default_max_pixels=500_000, min_pixels=7)
    assert ample == PixelLimits(7, 9_000_000, 500_000, 784)
    assert pixels(ReadAs(PixelBounds(65536, 10**6), 16)) == PixelLimits(65536, 10**6, 10**6, 1024)
    assert pixels(max_pixels=1000) == PixelLimits(1000, 1000, 1000, 784)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_pixels": 5, "default_max_pixels": 6}, "default_max_pixels 6 is above .*pixels 5"),
        ({"min_pixels": 7, "default_max_pixels": 6}, "min_pixels 7 is above .*max_pixels 6"),
        ({"min_pixels": 2_000_000}, "min_pixels 2000000 is above .*max_pixels 1103872"),
        ({"default_max_pixels": 2_000_000}, "2000000 is above qwen_vl.max_pixels 1103872"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidSetting, match=message):
        pixels(**settings)
