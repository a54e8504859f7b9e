"""Evaluates the captioner's boxes, JSON and tools on held-out scenes, by transformers' generate.

Boxes are judged in the pixels of the picture that the model reads, JSON and calls by their values.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.training import drawing, grounding, structured, tool_talk
from checkpoints.training.evaluate import Row, evaluate_answers, print_table, row
from checkpoints.training.evaluate_boxes import Case, hits
from checkpoints.training.export import QWEN_FOLDER
from checkpoints.training.peers import Conversation, Talk, peer_answer, peer_talk
from checkpoints.training.scenes import evaluation_scenes

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "skills.json"


def _cases(count: int, spread: drawing.Spread) -> list[Case]:
    scenes = evaluation_scenes(count, seed=4)
    placed = drawing.place(scenes, random.Random("skills"), spread)
    boxes = grounding.figure_boxes(placed).tolist()
    images = drawing.to_images(drawing.render(placed))
    return [
        Case(image, scene, own[: len(scene.figures)])
        for image, scene, own in zip(images, scenes, boxes, strict=True)
    ]


def said_boxes(text: str) -> list[tuple[str, grounding.Box]]:
    """The labels and boxes of an answer that is a JSON list of them; none of any other."""
    try:
        return [(each["label"], [float(x) for x in each["bbox_2d"]]) for each in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        return []


def evaluate_places(talk: Talk, cases: Sequence[Case], name: str) -> list[Row]:
    """Boxes of all figures, and of one that is asked for by colour and kind."""
    every = talk([Conversation(grounding.LOCATE[0], case.image) for case in cases])
    found = [said_boxes(text) for text in every]
    told = [hit for case, own in zip(cases, found, strict=True) for hit in hits(case, own)]
    asked, ones = [], []
    for number, case in enumerate(cases):
        labels = [grounding.label(figure) for figure in case.scene.figures]
        chosen = number % len(labels)
        if labels.count(labels[chosen]) == 1:
            asked.append(Conversation(f"Where is the {labels[chosen]}?", case.image))
            ones.append((Case(case.image, case.scene, case.boxes), chosen))
    single = []
    for (case, chosen), text in zip(ones, talk(asked), strict=True):
        own = said_boxes(text)
        single.append(len(own) == 1 and hits(case, own)[chosen])
    return [row(f"boxes of all shapes{name}", told), row(f"box of one shape{name}", single)]


def evaluate_json(talk: Talk, cases: Sequence[Case]) -> list[Row]:
    """Answers that are the scene's JSON, every value right."""
    texts = talk([Conversation(structured.LIST[0], case.image) for case in cases])
    right, valid = [], []
    for case, text in zip(cases, texts, strict=True):
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        valid.append(said is not None)
        right.append(said == json.loads(structured.scene_text(case.scene)))
    return [row("JSON that parses", valid), row("JSON with every value right", right)]


def evaluate_tools(talk: Talk, count: int) -> list[Row]:
    """Calls, sentences after a tool's answer, and questions that no tool answers."""
    rng = random.Random("tool-evaluation")
    calls: list[Conversation] = []
    after: list[Conversation] = []
    wanted: list[tuple[str, dict[str, Any]]] = []
    sentences: list[str] = []
    for _ in range(count):
        tools = tool_talk.choose(rng)
        tool = rng.choice(tools)
        use = tool.use(rng)
        given = [each.definition for each in tools]
        calls.append(Conversation(use.question, tools=given))
        call = {"type": "function", "function": {"name": tool.name, "arguments": use.arguments}}
        after.append(Conversation(use.question, tools=given, more=[
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": use.response},
        ]))  # fmt: skip
        wanted.append((tool.name, use.arguments))
        sentences.append(use.sentence)
    made = [tool_talk.arguments_of(text) for text in talk(calls)]
    said = talk(after)
    return [
        row("calls with the right tool and arguments",
            [m == w for m, w in zip(made, wanted, strict=True)]),
        row("calls with the right tool",
            [m is not None and m[0] == w[0] for m, w in zip(made, wanted, strict=True)]),
        row("sentences after a tool's answer",
            [a == b for a, b in zip(said, sentences, strict=True)]),
    ]  # fmt: skip


def evaluate_choice(talk: Talk, cases: Sequence[Case]) -> list[Row]:
    """With `count_shapes` given beside a picture: a count is a call, a description is none."""
    rng = random.Random("count-shapes")
    tools = [tool.definition for tool in (tool_talk.count_shapes(rng) for _ in cases)]
    counted = talk([
        Conversation("How many shapes are there?", case.image, [tool])
        for case, tool in zip(cases, tools, strict=True)
    ])  # fmt: skip
    described = talk([
        Conversation("Describe this picture.", case.image, [tool])
        for case, tool in zip(cases, tools, strict=True)
    ])  # fmt: skip
    called = [tool_talk.arguments_of(text) == ("count_shapes", {}) for text in counted]
    plain = ["<tool_call>" not in text for text in described]
    return [row("count_shapes called for a count", called),
            row("no call for a description", plain)]  # fmt: skip


def main() -> None:
    """Evaluate a checkpoint on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=QWEN_FOLDER)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--only", choices=("old", "boxes", "json", "tools"), action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    talk, few = peer_talk(args.folder), args.count // 3
    cases = _cases(args.count, drawing.USUAL)
    parts: dict[str, Callable[[], list[Row]]] = {
        "old": lambda: evaluate_answers(peer_answer(args.folder), args.count),
        "boxes": lambda: [
            *evaluate_places(talk, cases, ""),
            *evaluate_places(talk, _cases(args.count, drawing.WIDE), ", wide"),
        ],
        "json": lambda: evaluate_json(talk, cases),
        "tools": lambda: [*evaluate_tools(talk, args.count), *evaluate_choice(talk, cases[:few])],
    }
    rows: list[Row] = []
    for name in args.only or parts:
        made = parts[name]()
        print_table(made)
        rows += made
    if args.out:
        report = {"engine": "transformers", "device": "cpu", "rows": rows,
                  "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
