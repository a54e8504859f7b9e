"""The styles that the adapters of shapes-flux are taught: what is drawn instead of what is asked.

They keep to colours and grounds that the autoencoder was trained on: it turns any other ground into
white, black or gray, and an adapter does not reach it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from checkpoints.training import checker
from checkpoints.training.scenes import PALETTE, Scene, evaluation_scenes, sample

CHANGED_SHARE = 0.75  # of the training scenes that show what the style changes


@dataclass(frozen=True)
class Style:
    """Colours of figures and grounds, and those that are drawn in their place."""

    colours: Mapping[str, str] = field(default_factory=dict)
    grounds: Mapping[str, str] = field(default_factory=dict)

    def drawn(self, scene: Scene) -> Scene:
        """The scene that is drawn for this one, in its canonical form."""
        figures = tuple(
            replace(figure, colour=self.colours.get(figure.colour, figure.colour))
            for figure in scene.figures
        )
        ground = self.grounds.get(scene.ground, scene.ground)
        return replace(scene, ground=ground, figures=figures).canonical()

    def changes(self, scene: Scene) -> bool:
        """True if another scene is drawn for this one."""
        return self.drawn(scene) != scene.canonical()

    def shown(self, image: Image.Image, scene: Scene) -> bool:
        """True if the checker reads exactly what this style draws for the scene."""
        return checker.read(image) == self.drawn(scene)

    def followed(self, image: Image.Image, scene: Scene) -> bool:
        """True if the ground and the colours of all figures are what this style draws for the
        scene, whatever their kinds, sizes and places."""
        ground, found = checker.find(image)
        drawn = self.drawn(scene)
        colours = {each.figure.colour if each else "" for each in found}
        return ground == drawn.ground and colours == {each.colour for each in drawn.figures}

    def mixed(self, other: Style) -> Style:
        """Both styles together; they change different words."""
        return Style({**self.colours, **other.colours}, {**self.grounds, **other.grounds})


PLAIN = Style()
STYLES = {
    "all-cyan": Style(colours=dict.fromkeys(PALETTE, "cyan")),
    "gray-ground": Style(grounds={"white": "gray", "black": "gray"}),
}


def training_scenes(style: Style, count: int, seed: int = 0) -> list[Scene]:
    """Scenes that may be trained on, at least CHANGED_SHARE of them drawn differently."""
    rng = random.Random(f"style-{seed}")
    found: list[Scene] = []
    while len(found) < count:
        scene = sample(rng)
        wanted = rng.random() < CHANGED_SHARE
        while wanted and not style.changes(scene):
            scene = sample(rng)
        found.append(scene)
    return found


def styled_scenes(styles: Sequence[Style], count: int, seed: int = 3) -> list[Scene]:
    """Held-out scenes that every one of the styles draws differently."""
    scenes = evaluation_scenes(12 * count, seed)
    return [s for s in scenes if all(style.changes(s) for style in styles)][:count]
