"""Pictures of held-out scenes with one shape to be replaced, and a mask around it.

The picture shows another shape of the same size in that place. Edited by the caption of the
held-out scene, it must show that scene, which the rule-based checker reads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from checkpoints.training import checker, drawing
from checkpoints.training.scenes import KINDS, PALETTE, Figure, Scene, caption, evaluation_scenes

SEED = 6
"""Of the cases that are scored; strength and steps were chosen on those of seed 3."""
REACH = {"large": 30.0, "small": 26.0}
"""Pixels from the middle of a shape to the edges of its mask: the shape and some ground. Another
shape's middle is 56 pixels away at least."""


@dataclass(frozen=True)
class Edit:
    """One picture, its mask (white is to be redrawn), and the scene that the edit must show."""

    picture: Image.Image
    mask: Image.Image
    wanted: Scene

    @property
    def prompt(self) -> str:
        return caption(self.wanted)

    def is_right(self, edited: Image.Image) -> bool:
        return checker.read(edited) == self.wanted


def edits(count: int, seed: int = SEED) -> list[Edit]:
    """Distinct held-out scenes, the same ones every time; a tenth of them have one shape."""
    scenes = enumerate(evaluation_scenes(count, seed))
    return [_edit(scene, random.Random(f"edit-{seed}-{number}")) for number, scene in scenes]


def _edit(wanted: Scene, rng: random.Random) -> Edit:
    place = rng.randrange(len(wanted.figures))
    figures = list(wanted.figures)
    figures[place] = _other(figures[place], rng)
    batch = drawing.place([replace(wanted, figures=tuple(figures))], rng)
    (picture,) = drawing.to_images(drawing.render(batch))
    x, y = batch.middle[0, place].tolist()
    return Edit(picture, _mask(x, y, wanted.figures[place].size), wanted)


def _other(figure: Figure, rng: random.Random) -> Figure:
    """A shape of the same size, of another kind and colour."""
    colours = [colour for colour in PALETTE if colour != figure.colour]
    kinds = [kind for kind in KINDS if kind != figure.kind]
    return Figure(figure.size, rng.choice(colours), rng.choice(kinds))


def _mask(x: float, y: float, size: str) -> Image.Image:
    reach = REACH[size]
    mask = Image.new("L", (drawing.SIDE, drawing.SIDE))
    ImageDraw.Draw(mask).rectangle((x - reach, y - reach, x + reach, y + reach), 255)
    return mask
