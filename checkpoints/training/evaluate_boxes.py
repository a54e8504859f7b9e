"""Asks a running server for the boxes of held-out scenes, and judges them in the caller's pixels.

The scenes are drawn at three sizes, of which the server shrinks two. A figure is hit by a box of
its label that overlaps its drawn box by at least one half.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from checkpoints.training import drawing, grounding
from checkpoints.training.evaluate import Row, print_table, row
from checkpoints.training.grounding import Box
from checkpoints.training.scenes import Scene, evaluation_scenes

SIDES = (128, 512, 1024)
MAX_PIXELS = 20_000  # larger pictures are read at 140x140, the size that was trained
QUESTION = "Locate every shape."
OVERLAP = 0.5
Found = Sequence[tuple[str, Box]]
"""Labels and boxes of an answer."""
Locate = Callable[[Image.Image], Found]


@dataclass(frozen=True)
class Case:
    """A picture, its scene and the drawn boxes of its figures, in its own pixels."""

    image: Image.Image
    scene: Scene
    boxes: Sequence[Box]


def draw_cases(count: int, spread: drawing.Spread = drawing.USUAL) -> list[Case]:
    """Held-out scenes, one size after the other."""
    scenes = evaluation_scenes(count, seed=3)
    made = []
    for number, scene in enumerate(scenes):
        side = SIDES[number % len(SIDES)]
        placed = drawing.place([scene], random.Random(f"boxes-{number}"), spread)
        (image,) = drawing.to_images(drawing.render(placed, side=side))
        boxes = grounding.figure_boxes(placed, side)[0, : len(scene.figures)].tolist()
        made.append(Case(image, scene, boxes))
    return made


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def hits(case: Case, found: Found, at_least: float = OVERLAP) -> list[bool]:
    """For each figure, True if a box of its label hits it. A box hits one figure."""
    left = list(found)
    told = []
    for figure, box in zip(case.scene.figures, case.boxes, strict=True):
        best = max((x for x in left if x[0] == grounding.label(figure)),
                   key=lambda x: overlap(x[1], box), default=None)  # fmt: skip
        is_hit = best is not None and overlap(best[1], box) >= at_least
        if best is not None and is_hit:
            left.remove(best)
        told.append(is_hit)
    return told


def evaluate_boxes(locate: Locate, cases: Sequence[Case]) -> list[Row]:
    """The shares of figures that are hit, in all and at each size, and of scenes that have no box
    too many."""
    answers = [(case, locate(case.image)) for case in cases]
    rows = [row("figures hit", [hit for case, found in answers for hit in hits(case, found)])]
    for side in SIDES:
        told = [hit for case, found in answers if case.image.width == side
                for hit in hits(case, found)]  # fmt: skip
        rows.append(row(f"figures hit in pictures of {side}x{side}", told))
    strict = [hit for case, found in answers for hit in hits(case, found, 0.75)]
    counts = [len(found) == len(case.boxes) for case, found in answers]
    return [*rows, row("figures hit by three quarters", strict), row("as many boxes", counts)]


def ask(url: str, model: str) -> Locate:
    """`locate` by OpenAI's chat of a server."""

    def locate(image: Image.Image) -> Found:
        file = io.BytesIO()
        image.save(file, "PNG")
        data = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": data}},
                   {"type": "text", "text": QUESTION}]  # fmt: skip
        body = {"model": model, "messages": [{"role": "user", "content": content}],
                "max_pixels": MAX_PIXELS, "coordinates": "original", "max_tokens": 200}  # fmt: skip
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            message = json.load(reply)["choices"][0]["message"]
        return [(each["label"], each["box"]) for each in message["boxes"]]

    return locate


def main() -> None:
    """Evaluate a running server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="qwen-vl")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--wide", action="store_true", help="places the relation tells less of")
    args = parser.parse_args()
    spread = drawing.WIDE if args.wide else drawing.USUAL
    print_table(evaluate_boxes(ask(args.url, args.model), draw_cases(args.count, spread)))


if __name__ == "__main__":
    main()
