"""Questions for a scene as JSON, and the captioner's JSON."""

from __future__ import annotations

import json
import random

from checkpoints.training.scenes import Figure, Scene

LIST = (
    "List the shapes as JSON.", "List the shapes as JSON.", "List all shapes as JSON.",
    "Describe the picture as JSON.", "Describe this picture as JSON.",
    "Describe this image as JSON.",
    "Return the shapes as JSON.", "Give me JSON of the shapes.",
    "What is in this picture? Answer in JSON.",
    "Describe the image in JSON format.", "Output JSON.", "Answer in JSON: what shapes are there?",
    "Write the picture as JSON.", "Extract the shapes as JSON.", "JSON please.",
    "List every shape with kind, colour and size as JSON.",
    "Extract the shapes and the ground.", "Which shapes are in the picture? Reply with JSON only.",
)  # fmt: skip


def _entry(figure: Figure) -> dict[str, str]:
    return {"kind": figure.kind, "colour": figure.colour, "size": figure.size}


def scene_text(scene: Scene) -> str:
    """The JSON of a scene, the figures in the order of its caption."""
    shapes = [_entry(figure) for figure in scene.canonical().figures]
    return json.dumps({"shapes": shapes, "ground": scene.ground})


def list_shapes(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Ask for a scene as JSON."""
    return rng.choice(LIST), scene_text(scene)
