"""Evaluates the two checkpoints on held-out scenes and writes a table and a JSON file.

Prompts are drawn and read by the rule-based checker; drawn scenes are described and asked about;
prompts go through both models. The models are two callables, `draw` and `answer`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from checkpoints.training import checker, drawing, wording
from checkpoints.training.export import FLUX_FOLDER, QWEN_FOLDER, ROOT
from checkpoints.training.peers import Answer, Draw, peer_answer, peer_draw
from checkpoints.training.scenes import Scene, caption, evaluation_scenes, parse_caption

DESCRIBE = "Describe this picture."
COUNT = "How many shapes are there?"
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "checkpoints.json"
TARGETS = {"prompts drawn right": 0.90, "scenes described right": 0.95,
           "prompt to picture to caption": 0.88}  # fmt: skip
Row = dict[str, object]


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return middle - half, middle + half


def row(name: str, right: Sequence[bool]) -> Row:
    """One line of the table."""
    low, high = interval(sum(right), len(right))
    return {
        "name": name,
        "right": sum(right),
        "of": len(right),
        "share": round(sum(right) / max(len(right), 1), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "target": TARGETS.get(name),
    }


def same_words(answer: str, expected: str) -> bool:
    """True if a short answer is the expected word, ignoring case and a full stop."""
    return answer.strip().rstrip(".").lower() == expected


def _colour_questions(scenes: Sequence[Scene]) -> dict[str, list[tuple[int, str]]]:
    """For each question with one answer: the number of the scene and the expected word."""
    asked: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, scene in enumerate(scenes):
        kinds = [figure.kind for figure in scene.figures]
        figure = scene.figures[number % len(scene.figures)]
        if kinds.count(figure.kind) == 1:
            asked[f"What colour is the {figure.kind}?"].append((number, figure.colour))
    return asked


def evaluate_answers(answer: Answer, count: int) -> list[Row]:
    """Evaluate descriptions, counts and colours for drawn pictures of held-out scenes."""
    scenes = evaluation_scenes(count, seed=2)
    images = drawing.draw(scenes, seed=2)
    described = [parse_caption(text) for text in answer(images, DESCRIBE)]
    counted = answer(images, COUNT)
    coloured = []
    for question, cases in _colour_questions(scenes).items():
        replies = answer([images[number] for number, _ in cases], question)
        coloured += [same_words(r, word) for r, (_, word) in zip(replies, cases, strict=True)]
    words = [wording.NUMBER_WORDS[len(scene.figures)] for scene in scenes]
    return [
        row("true pictures read right by the checker",
            [checker.read(i) == s for i, s in zip(images, scenes, strict=True)]),
        row("scenes described right", [d == s for d, s in zip(described, scenes, strict=True)]),
        row("shapes counted right", [same_words(*x) for x in zip(counted, words, strict=True)]),
        row("colours named right", coloured),
    ]  # fmt: skip


def evaluate_drawing(
    draw: Draw, answer: Answer | None, count: int
) -> tuple[list[Row], list[Image.Image]]:
    """Draw held-out prompts, in two wordings, and evaluate the pictures by checker and
    captioner."""
    scenes = evaluation_scenes(count, seed=1)
    seeds = list(range(1000, 1000 + count))
    images = draw([caption(scene) for scene in scenes], seeds)
    rng = random.Random("other words")
    others = draw([wording.prompt(rng, scene, complete=True) for scene in scenes], seeds)
    rows = [
        row("prompts drawn right", _read_right(images, scenes)),
        row("prompts in other words drawn right", _read_right(others, scenes)),
    ]
    if answer is not None:
        described = [parse_caption(text) for text in answer(images, DESCRIBE)]
        agreed = [t == s for t, s in zip(described, scenes, strict=True)]
        rows.append(row("prompt to picture to caption", agreed))
    return rows, images


def _read_right(images: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[bool]:
    return [checker.read(image) == scene for image, scene in zip(images, scenes, strict=True)]


def print_table(rows: Sequence[Row]) -> None:
    """The table as plain text."""
    for line in rows:
        low, high = line["interval_95"]  # type: ignore[misc]
        target = f"  target {line['target']:.0%}" if line["target"] else ""
        print(f"{line['name']:42} {line['right']:4} of {line['of']:4}  {line['share']:7.1%}"
              f"  [{low:.1%}, {high:.1%}]{target}", flush=True)  # fmt: skip


def main() -> None:
    """Evaluate by diffusers and transformers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of both checkpoints")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompt-length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    start = time.monotonic()
    answer = peer_answer(args.root / QWEN_FOLDER.name, args.device)
    draw = peer_draw(args.root / FLUX_FOLDER.name, args.device, args.steps, args.prompt_length)
    rows = evaluate_answers(answer, args.count)
    rows += evaluate_drawing(draw, answer, args.count)[0]
    print_table(rows)
    report = {
        "engine": "diffusers and transformers",
        "device": args.device,
        "precision": "weights bf16, computed in fp32",
        "steps": args.steps,
        "prompt_length": args.prompt_length,
        "seconds": round(time.monotonic() - start, 1),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
