"""Boxes, JSON and tools: what the captioner is trained on is true, and is what a server writes."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from checkpoints.training import (
    chat,
    drawing,
    grounding,
    structured,
    tool_talk,
    trees,
    tune_qwen_vl,
)
from checkpoints.training.evaluate_boxes import Case, draw_cases, hits, overlap
from checkpoints.training.export import QWEN_FOLDER
from checkpoints.training.scenes import is_held_out, sample
from checkpoints.training.tune_qwen_vl import make_pool, shard_pictures, step_loss
from checkpoints.training.vlm_forward import Forward, resize, to_patches


@pytest.mark.parametrize("side", [128, 280])
def test_a_figures_box_is_that_of_its_pixels(side: int) -> None:
    rng = random.Random(5)
    scenes = [scene for scene in (sample(rng) for _ in range(60)) if len(scene.figures) == 1]
    placed = drawing.place(scenes, rng, drawing.WIDE)
    pictures = drawing.render(placed, side=side).numpy()
    for picture, box in zip(pictures, grounding.figure_boxes(placed, side)[:, 0], strict=True):
        rows, columns = np.nonzero(np.any(picture != picture[:, :1, :1], axis=0))
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(seen) - box.numpy()).max() < 1.6


def test_windows_change_nothing_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    placed = drawing.place([sample(rng) for _ in range(12)], rng, drawing.WIDE)
    windowed = drawing.render(placed)
    monkeypatch.setattr(drawing, "REACH", drawing.SIDE)
    assert torch.equal(windowed, drawing.render(placed))


def test_a_question_for_one_figure_is_answered_with_all_that_it_names() -> None:
    rng = random.Random(7)
    for _ in range(200):
        scene = sample(rng)
        boxes = [[0, 0, 9.6, 9.4], [20, 20, 30, 30]]
        question, answer = grounding.where(rng, scene, boxes)
        found = json.loads(answer)
        assert [set(each) for each in found] == [{"bbox_2d", "label"}] * len(found)
        labels = {each["label"] for each in found}
        assert labels <= {grounding.label(figure) for figure in scene.figures}
        assert any(word in question for label in labels for word in label.split())


def test_the_json_of_a_scene_has_its_figures_and_ground() -> None:
    scene = sample(random.Random(8))
    said = json.loads(structured.scene_text(scene))
    assert said["ground"] == scene.ground
    kinds = [(each["size"], each["colour"], each["kind"]) for each in said["shapes"]]
    assert kinds == [(f.size, f.colour, f.kind) for f in scene.canonical().figures]


def test_training_text_with_tools_is_the_chat_template() -> None:
    rng = random.Random(9)
    processor = AutoProcessor.from_pretrained(QWEN_FOLDER)
    for _ in range(20):
        tools = [tool.definition for tool in tool_talk.choose(rng)]
        use = tool_talk.count_shapes(rng).use(rng)
        call = {
            "type": "function",
            "function": {"name": "count_shapes", "arguments": use.arguments},
        }
        messages = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": use.question}],
            },
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": use.response},
        ]
        rendered = processor.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )
        written = (
            chat.opening(tools=tools)
            + chat.asked(use.question, chat.IMAGE)
            + chat.answered(chat.called("count_shapes", use.arguments))
            + "\n"
            + chat.asked(chat.responded(use.response))
        )
        assert rendered.replace("<|image_pad|>", "<|image_pad|>" * chat.IMAGE_TOKENS) == written
        assert tool_talk.arguments_of(chat.called("count_shapes", use.arguments)) == (
            "count_shapes", use.arguments,
        )  # fmt: skip


def test_a_branch_is_read_as_if_it_stood_alone() -> None:
    rng = random.Random(10)
    seen, placed, _ = shard_pictures(0)
    pictures = resize(drawing.render(placed.part(0, 2, "cpu")))
    planted = [trees.picture_tree(rng, 0, seen[0]), trees.tool_tree(rng, 1, seen[1])]
    tokenizer = Qwen2Tokenizer.from_pretrained(QWEN_FOLDER)
    planter = trees.Planter(tokenizer)
    rows = planter.rows(planted, planter.flat(planted))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN_FOLDER, dtype=torch.float32)
    forward = Forward(model.eval())
    with torch.inference_mode():
        read = forward.see(to_patches(pictures, frames=1))
        wholes = forward.see(to_patches(pictures))
        assert torch.allclose(read, wholes, atol=1e-4)
        many = forward.read(read, rows.ids, rows.slot, rows.position, rows.allowed())
        for number, tree in enumerate(planted):
            mine = rows.branch[number]
            for branch in (1, len(tree.branches)):
                alone = trees.Tree(0, tree.stem, [tree.branches[branch - 1]])
                one = planter.rows([alone], planter.flat([alone]))
                expected = forward.read(read[number, None], one.ids, one.slot, one.position)[0]
                found = torch.cat((many[number][mine == 0], many[number][mine == branch]))
                assert torch.allclose(found, expected, atol=1e-3)


def test_a_step_of_the_tuning_has_gradients_for_every_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_qwen_vl, "SHARD", 24)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN_FOLDER, dtype=torch.float32)
    seen, _, _ = shard_pictures(0)
    assert not any(is_held_out(one.scene) for one in seen)
    pool = make_pool(None, 1, "cpu", 1)
    assert pool.pictures.shape == (24, 3, 140, 140)
    assert sum(len(rows.ids) for rows in pool.rows.values()) == 24
    length = max(pool.rows, key=lambda length: len(pool.rows[length].ids))
    loss = step_loss(Forward(model), pool, length, 4)
    loss.backward()
    assert loss.isfinite()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_figures_are_hit_by_boxes_of_their_label_that_overlap_by_half() -> None:
    assert overlap([0, 0, 10, 10], [0, 0, 10, 10]) == 1
    assert overlap([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)
    assert overlap([0, 0, 10, 10], [10, 0, 20, 10]) == 0
    case = draw_cases(30)[1]
    true = [(grounding.label(f), b) for f, b in zip(case.scene.figures, case.boxes, strict=True)]
    assert hits(case, true) == [True] * len(true)
    assert hits(case, [("something else", box) for _, box in true]) == [False] * len(true)
    moved = [(name, [x + 60 for x in box]) for name, box in true]
    assert hits(case, moved) == [False] * len(true)
    assert isinstance(case, Case)
    assert case.image.width == 512
