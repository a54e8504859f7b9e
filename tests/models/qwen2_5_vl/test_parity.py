"""Our engine against transformers' `generate`, prompt preparation included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictors.chat.request import ChatRequest, Message, Picture
from predictors.compute.device.placement import place
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.settings import ComputeSettings
from tests.chat.reference import (
    Reference,
    assert_equal_positions,
    assert_equal_prompts_and_patches,
)
from tests.chat.room import CHECKPOINT, GREEDY, Room, chat, png

PROMPTS = (
    "Describe the picture.",
    "How many shapes are there?",
    "What colour is the circle?",
    "Ein grüner Stern 🌟?",
    "a b  c\n\nd",
)
SIZES = ((128, 128), (64, 64), (28, 28), (200, 90), (90, 200), (300, 140), (1, 1), (17, 113))


def pairs() -> list[ChatRequest]:
    """50 conversations: one picture, two pictures in one message, text only, an earlier turn."""
    requests = [
        chat(png(i, *SIZES[i % len(SIZES)]), PROMPTS[i % len(PROMPTS)], max_tokens=10)
        for i in range(30)
    ]
    requests += [
        chat(png(i, 64, 64), "first, and second:", png(i + 50, *SIZES[i % 8]), PROMPTS[i % 5])
        for i in range(8)
    ]
    requests += [chat(PROMPTS[i % 5] + " " + "and so on " * i) for i in range(8)]
    for i in range(4):
        turns = (
            Message("system", ("Answer briefly.",)),
            Message("user", (Picture(png(i)), "What is it?")),
            Message("assistant", ("a red circle",)),
            Message("user", ("and this?", Picture(png(i + 9, 100, 60)))),
        )
        requests.append(ChatRequest(turns, GREEDY, seed=0, max_tokens=8))
    return requests


def test_greedy_tokens_equal_those_of_generate_on_fifty_conversations(
    room: Room, reference: Reference
) -> None:
    requests = pairs()
    assert len(requests) == 50
    ours = room.answers(requests)
    assert ours == [reference.answer(request) for request in requests]
    assert all(ours)


def test_greedy_tokens_equal_where_every_pixel_and_position_matters(
    wild: Room, wild_checkpoint: Path
) -> None:
    requests = pairs()[::3]
    ours = wild.answers(requests)
    assert len({tuple(answer) for answer in ours}) > 12
    reference = Reference.load(wild_checkpoint)
    assert ours == [reference.answer(request) for request in requests]


def test_prompts_and_patches_are_those_of_transformers(room: Room, reference: Reference) -> None:
    assert_equal_prompts_and_patches(room, reference, pairs()[::3])


def test_rotary_positions_are_those_of_get_rope_index(room: Room, reference: Reference) -> None:
    assert_equal_positions(room, reference, pairs()[::3])


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (10, 10), (2, 30), (18, 26), (16, 32), (24, 10)])
def test_the_vision_tower_has_the_numbers_of_transformers(
    reference: Reference, grid: tuple[int, int]
) -> None:
    placement = place(ComputeSettings(device="cpu", compile="off"))
    encoder = Qwen25VLModel(CHECKPOINT).load(placement).vision
    values = torch.randn(grid[0] * grid[1], 3, 14 * 14, generator=torch.Generator().manual_seed(1))
    both_frames = values[:, :, None].expand(-1, -1, 2, -1).flatten(1)
    with torch.no_grad():
        theirs = reference.model.model.visual(both_frames, grid_thw=torch.tensor([[1, *grid]]))
        ours = encoder.encode(values.flatten(1), grid)[0]
    scale = theirs.pooler_output.abs().max()
    assert (ours - theirs.pooler_output).abs().max() < 1e-5 * scale


def test_a_checkpoint_as_the_hub_ships_it_gives_the_answers_of_generate(
    hub_checkpoint: Path,
) -> None:
    assert not list(hub_checkpoint.glob("model.safetensors"))
    assert len(list(hub_checkpoint.glob("*.safetensors"))) == 3
    room, reference = Room.open(hub_checkpoint, slots=4), Reference.load(hub_checkpoint)
    requests = pairs()[::7]
    prompt = room.inputs.prepare(requests[0]).tokens.tolist()
    assert "You describe pictures." in room.model.tokenizer.decode(prompt)
    assert prompt == reference.inputs(requests[0])["input_ids"][0].tolist()
    assert room.answers(requests) == [reference.answer(request) for request in requests]


def test_a_chat_template_in_a_file_of_its_own_is_used(hub_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(hub_checkpoint, tmp_path / "jinja")
    (copy / "chat_template.json").unlink()
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    )
    room = Room.open(copy, slots=1)
    tokens = room.inputs.prepare(chat("hello")).tokens.tolist()
    assert room.model.tokenizer.decode(tokens) == "<hello>"
