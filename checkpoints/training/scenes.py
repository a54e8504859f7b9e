"""Scenes of one or two shapes, which the small checkpoints are trained on, and the held-out split.

A scene is a background and one or two figures with a relation between them. Each scene has exactly
one canonical form and one canonical caption, so that "held out" is a property of the scene and not
of its wording.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 130, 30),
    "purple": (130, 50, 170),
    "cyan": (40, 200, 220),
    "pink": (250, 150, 190),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = ("large", "small")
RELATIONS: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SINGLE_SHARE = 0.25
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, order=True)
class Figure:
    """One shape as words: its size, colour and kind."""

    size: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A background and one or two figures. `relation` is the first one's position relative to the
    second."""

    ground: str
    figures: tuple[Figure, ...]
    relation: str | None = None

    def flipped(self) -> Scene:
        """The same scene with the figures swapped."""
        if self.relation is None:
            return self
        return Scene(self.ground, self.figures[::-1], OPPOSITE[self.relation])

    def canonical(self) -> Scene:
        """The canonical form: the larger figure first, or else the left or upper one."""
        if self.relation is None:
            return self
        first, second = self.figures
        if first.size != second.size:
            return self if first.size == "large" else self.flipped()
        return self if self.relation in ("left", "above") else self.flipped()


def caption(scene: Scene) -> str:
    """The canonical caption, the same for both orders of the figures."""
    scene = scene.canonical()
    end = f"on a {scene.ground} background"
    if scene.relation is None:
        return f"a {scene.figures[0]} {end}"
    return f"a {scene.figures[0]} {RELATIONS[scene.relation]} a {scene.figures[1]} {end}"


_FIGURE = rf"an? ({'|'.join(SIZES)}) ({'|'.join(PALETTE)}) ({'|'.join(KINDS)})"
_CAPTION = re.compile(
    rf"^{_FIGURE}(?: ({'|'.join(RELATIONS.values())}) {_FIGURE})?"
    rf" on an? ({'|'.join(GROUNDS)}) background$"
)
_BY_PHRASE = {phrase: name for name, phrase in RELATIONS.items()}


def parse_caption(text: str) -> Scene | None:
    """The scene of a caption in either order, or None for any other text."""
    plain = text.strip().rstrip(".").lower().replace("grey", "gray")
    match = _CAPTION.match(plain)
    if match is None:
        return None
    parts = match.groups()
    first = Figure(*parts[0:3])
    if parts[3] is None:
        return Scene(parts[7], (first,))
    return Scene(parts[7], (first, Figure(*parts[4:7])), _BY_PHRASE[parts[3]]).canonical()


def is_held_out(scene: Scene) -> bool:
    """True for the tenth of all scenes that is never trained on, in any wording."""
    digest = hashlib.sha256(caption(scene).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def all_figures() -> list[Figure]:
    """Every figure, in a fixed order."""
    return [Figure(*parts) for parts in product(SIZES, PALETTE, KINDS)]


def all_scenes() -> Iterator[Scene]:
    """Every canonical scene once, in a fixed order."""
    figures = all_figures()
    for ground, figure in product(GROUNDS, figures):
        yield Scene(ground, (figure,))
    for ground, first, second, relation in product(GROUNDS, figures, figures, RELATIONS):
        scene = Scene(ground, (first, second), relation)
        if scene.canonical() == scene:
            yield scene


@lru_cache(maxsize=2)
def split(held_out: bool) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """All scenes of one side of the split: those with one figure, those with two."""
    single: list[Scene] = []
    double: list[Scene] = []
    for scene in all_scenes():
        if is_held_out(scene) == held_out:
            (single if scene.relation is None else double).append(scene)
    return tuple(single), tuple(double)


def sample(rng: random.Random, held_out: bool = False) -> Scene:
    """Draw one scene of one side of the split; a quarter of them have a single figure."""
    single, double = split(held_out)
    return rng.choice(single if rng.random() < SINGLE_SHARE else double)


def evaluation_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Distinct held-out scenes for the evaluation, a tenth of them with a single figure."""
    rng = random.Random(f"evaluation-{seed}")
    single, double = split(True)
    alone = min(count // 10, len(single))
    chosen = rng.sample(single, alone) + rng.sample(double, count - alone)
    rng.shuffle(chosen)
    return chosen
