"""Qwen3-VL in our engine against transformers in float32: patches, positions, features, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictors.chat.request import ChatRequest, Message, Picture
from predictors.compute.device.placement import place
from predictors.models.qwen3_vl.model import Qwen3VLModel
from predictors.settings import ComputeSettings
from tests.chat.reference import (
    Reference,
    assert_equal_positions,
    assert_equal_prompts_and_patches,
)
from tests.chat.room import GREEDY, Room, chat, png
from tests.models.qwen3_vl.conftest import open_room

PROMPTS = ("Describe the picture.", "How many shapes?", "Ein grüner Stern 🌟?", "a b  c\n\nd")
SIZES = ((128, 128), (64, 64), (32, 32), (200, 90), (90, 200), (300, 140), (1, 1), (17, 113))


def conversations() -> list[ChatRequest]:
    """One picture, two pictures in one message, text only, an earlier turn with a picture."""
    made = [chat(png(i, *SIZES[i]), PROMPTS[i % 4], max_tokens=10) for i in range(8)]
    made += [
        chat(png(i, 64, 64), "first, and second:", png(i + 50, *SIZES[i]), PROMPTS[i % 4])
        for i in range(0, 8, 2)
    ]
    made += [chat(PROMPTS[i] + " and so on" * i) for i in range(4)]
    turns = (
        Message("system", ("Answer briefly.",)),
        Message("user", (Picture(png(1)), "What is it?")),
        Message("assistant", ("a red circle",)),
        Message("user", ("and this?", Picture(png(9, 100, 60)))),
    )
    return [*made, ChatRequest(turns, GREEDY, seed=0, max_tokens=8)]


def test_greedy_tokens_equal_those_of_generate(room: Room, reference: Reference) -> None:
    requests = conversations()
    ours = room.answers(requests)
    assert ours == [reference.answer(request) for request in requests]
    assert len({tuple(answer) for answer in ours}) > len(requests) // 2


def test_deepstack_features_reach_the_answer(
    room: Room, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = chat(png(3, 96, 64), "What is it?")
    other = open_room(checkpoint, slots=1)
    encoder = other.pictures._encoder
    encode = encoder.encode

    def without_levels(*picture: object) -> torch.Tensor:
        features = encode(*picture)
        features[1:] = 0.0
        return features

    monkeypatch.setattr(encoder, "encode", without_levels)
    assert other.answer(request) != room.answer(request)


def test_prompts_and_patches_are_those_of_transformers(room: Room, reference: Reference) -> None:
    assert_equal_prompts_and_patches(room, reference, conversations())


def test_rotary_positions_are_those_of_get_rope_index(room: Room, reference: Reference) -> None:
    assert_equal_positions(room, reference, conversations())


def test_rotary_tables_are_those_of_the_interleaved_axes(room: Room, reference: Reference) -> None:
    decoder, work = room.runner._decoder, room.inputs.prepare(conversations()[10])
    ours = decoder.angles(work.positions)
    stream = torch.zeros(1)
    theirs = reference.model.model.language_model.rotary_emb(stream, work.positions[:, None])
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other[0])


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (10, 4), (2, 30), (18, 26)])
def test_features_of_all_levels_are_those_of_transformers(
    checkpoint: Path, reference: Reference, grid: tuple[int, int]
) -> None:
    placement = place(ComputeSettings(device="cpu", compile="off"))
    vision = Qwen3VLModel(checkpoint).load(placement).vision
    values = torch.randn(grid[0] * grid[1], 3, 16 * 16, generator=torch.Generator().manual_seed(1))
    both_frames = values[:, :, None].expand(-1, -1, 2, -1).flatten(1)
    with torch.no_grad():
        theirs = reference.model.model.visual(both_frames, grid_thw=torch.tensor([[1, *grid]]))
        ours = vision.encode(values.flatten(1), grid)
    expected = torch.stack([theirs.pooler_output, *theirs.deepstack_features])
    assert ours.shape == (3, grid[0] * grid[1] // 4, 64)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_untied_head_gives_the_tokens_of_generate(untied_checkpoint: Path) -> None:
    room, reference = open_room(untied_checkpoint, slots=4), Reference.load(untied_checkpoint)
    assert not room.model.shape.tied
    requests = conversations()[::3]
    assert room.answers(requests) == [reference.answer(request) for request in requests]


def test_a_checkpoint_as_the_hub_ships_it_gives_the_tokens_of_generate(
    hub_checkpoint: Path,
) -> None:
    assert len(list(hub_checkpoint.glob("*.safetensors"))) == 2
    room, reference = open_room(hub_checkpoint, slots=4), Reference.load(hub_checkpoint)
    assert room.model.sampling.top_k == 20
    assert room.model.end_tokens == {800, 802}
    requests = conversations()[1::3]
    assert room.answers(requests) == [reference.answer(request) for request in requests]


def test_prompts_read_in_chunks_and_beside_others_give_the_same_tokens(
    room: Room, checkpoint: Path
) -> None:
    requests = conversations()
    alone = [room.answer(request) for request in requests]
    assert open_room(checkpoint, slots=3, prefill_chunk=16).answers(requests) == alone
    packed = Room.open_ahead(checkpoint, make_model=Qwen3VLModel, deterministic="off")
    assert packed.answers(requests) == alone
