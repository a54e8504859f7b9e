"""Questions for the boxes of drawn figures, answered as Qwen2.5-VL answers them.

An answer is a JSON list of `{"bbox_2d": [x1, y1, x2, y2], "label": ...}` in pixels of the picture
as the model reads it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import torch

from checkpoints.training.drawing import OUTLINES, SIDE, Batch
from checkpoints.training.scenes import KINDS, Figure, Scene

READ_SIDE = 140  # pixels of a 128x128 picture after the processor's resize
LOCATE = (
    "Locate every shape.", "Locate all shapes.", "Locate the shapes.", "Find every shape.",
    "Locate every shape in the picture.", "Locate all shapes in this image.",
    "Find all shapes in the picture.", "Detect all shapes.", "Detect every shape.",
    "Where are the shapes?", "Give the bounding boxes of all shapes.",
    "Output the bounding box of every shape as JSON.", "Draw a box around every shape.",
    "Locate every shape, report the bbox coordinates in JSON format.",
    "Detect all objects and return their bounding boxes as JSON.",
    "Show me the boxes of all shapes.", "Where is everything?",
)  # fmt: skip
WHERE = (
    "Where is the {0}?", "Where is the {0}?", "Where is the {0} in the picture?",
    "Locate the {0}.", "Find the {0}.", "Locate the {0} in this image.",
    "Give the bounding box of the {0}.", "What is the bounding box of the {0}?",
    "Detect the {0}.", "Show me the box of the {0}.",
    "Locate the {0}, report its bbox coordinates in JSON format.",
)  # fmt: skip
Box = Sequence[float]


def _extents() -> torch.Tensor:
    """[kinds, 4]: left, top, right and bottom of each kind for radius 1."""
    rows = []
    for kind in KINDS:
        corners = torch.tensor(OUTLINES.get(kind, [(-1.0, -1.0), (1.0, 1.0)]))
        rows.append(torch.cat((corners.amin(0), corners.amax(0))))
    return torch.stack(rows)


def figure_boxes(batch: Batch, side: float = READ_SIDE) -> torch.Tensor:
    """The boxes [n, 2, 4] of placed figures in a picture of `side` pixels."""
    middle = batch.middle.repeat(1, 1, 2)
    reach = _extents()[batch.kind] * batch.radius[:, :, None]
    return (middle + reach) * (side / SIDE)


def label(figure: Figure) -> str:
    """The words that an answer names a figure with."""
    return f"{figure.colour} {figure.kind}"


def boxes_text(figures: Sequence[Figure], boxes: Sequence[Box]) -> str:
    """The answer with the boxes of some figures."""
    found = [
        {"bbox_2d": [round(float(x)) for x in box], "label": label(figure)}
        for figure, box in zip(figures, boxes, strict=True)
    ]
    return json.dumps(found)


def locate(rng: random.Random, scene: Scene, boxes: Sequence[Box]) -> tuple[str, str]:
    """Ask for every box."""
    return rng.choice(LOCATE), boxes_text(scene.figures, boxes[: len(scene.figures)])


def where(rng: random.Random, scene: Scene, boxes: Sequence[Box]) -> tuple[str, str]:
    """Ask for one figure by colour and kind, or by one of them or its size where that tells it."""
    chosen = rng.randrange(len(scene.figures))
    figure = scene.figures[chosen]
    names = [f"{figure.size} {figure.colour} {figure.kind}", label(figure), label(figure),
             label(figure), figure.kind, f"{figure.colour} shape"]  # fmt: skip
    name = rng.choice(names)
    same = [i for i, other in enumerate(scene.figures) if _is_named(other, name)]
    text = boxes_text([scene.figures[i] for i in same], [boxes[i] for i in same])
    return rng.choice(WHERE).format(name), text


def _is_named(figure: Figure, name: str) -> bool:
    words = {figure.size, figure.colour, figure.kind, "shape"}
    return all(word in words for word in name.split())
