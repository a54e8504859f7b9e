"""Draws scenes: places the figures with some jitter and renders antialiased 128x128 pictures.

It works on batches and on any torch device: a GPU draws hundreds of thousands of pictures in
seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image

from checkpoints.training.scenes import GROUNDS, KINDS, PALETTE, Scene

SIDE = 128
RADII = {"large": (22.0, 25.0), "small": (11.0, 13.0)}
REACH = 27.5  # no figure reaches farther from its middle, its soft edge included
CORNERS = 12


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 1.08 if corner % 2 == 0 else 0.46
        angle = -math.pi / 2 + corner * math.pi / 5
        points.append((radius * math.cos(angle), radius * math.sin(angle) + 0.10))
    return points


# Corners of each kind for radius 1, with the middle of the bounding box at the origin.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.88), (1.0, 0.88), (-1.0, 0.88)],
    "star": _star(),
    "diamond": [(0.0, -1.06), (0.78, 0.0), (0.0, 1.06), (-0.78, 0.0)],
    "cross": [
        (-0.32, -0.96), (0.32, -0.96), (0.32, -0.32), (0.96, -0.32), (0.96, 0.32), (0.32, 0.32),
        (0.32, 0.96), (-0.32, 0.96), (-0.32, 0.32), (-0.96, 0.32), (-0.96, -0.32), (-0.32, -0.32),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Placed scenes as arrays: ground [n], kind and colour [n, 2], middle [n, 2, 2], radius."""

    ground: torch.Tensor
    kind: torch.Tensor
    colour: torch.Tensor
    middle: torch.Tensor
    radius: torch.Tensor

    def __len__(self) -> int:
        return len(self.ground)

    def part(self, start: int, stop: int, device: str) -> Batch:
        """Rows start to stop, on a device."""
        arrays = (self.ground, self.kind, self.colour, self.middle, self.radius)
        return Batch(*(array[start:stop].to(device) for array in arrays))


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    names = [field.name for field in fields(Batch)]
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


@dataclass(frozen=True)
class Spread:
    """The ranges that the middles of figures are drawn from, in pixels of a 128x128 picture."""

    near: tuple[float, float] = (29.0, 36.0)
    far: tuple[float, float] = (92.0, 99.0)
    middle: tuple[float, float] = (58.0, 70.0)
    alone: tuple[float, float] = (44.0, 84.0)


USUAL = Spread()
WIDE = Spread((27.0, 44.0), (84.0, 101.0), (46.0, 82.0), (30.0, 98.0))
"""Places that the relation tells less of; every figure is still whole."""


def _middles(scene: Scene, rng: random.Random, spread: Spread) -> list[tuple[float, float]]:
    if scene.relation is None:
        return [(rng.uniform(*spread.alone), rng.uniform(*spread.alone))]
    near, far = rng.uniform(*spread.near), rng.uniform(*spread.far)
    cross = (rng.uniform(*spread.middle), rng.uniform(*spread.middle))
    along = (near, far) if scene.relation in ("left", "above") else (far, near)
    if scene.relation in ("left", "right"):
        return [(along[0], cross[0]), (along[1], cross[1])]
    return [(cross[0], along[0]), (cross[1], along[1])]


def place(scenes: Sequence[Scene], rng: random.Random, spread: Spread = USUAL) -> Batch:
    """Choose a centre and a radius for every figure of every scene."""
    count = len(scenes)
    kinds = {kind: index for index, kind in enumerate(KINDS)}
    colours = {colour: index for index, colour in enumerate(PALETTE)}
    grounds = {ground: index for index, ground in enumerate(GROUNDS)}
    kind = np.zeros((count, 2), np.int64)
    colour = np.zeros((count, 2), np.int64)
    # A missing second figure is a speck far outside the picture.
    middle = np.full((count, 2, 2), -1000.0, np.float32)
    radius = np.ones((count, 2), np.float32)
    ground = np.array([grounds[scene.ground] for scene in scenes], np.int64)
    for row, scene in enumerate(scenes):
        for column, spot in enumerate(_middles(scene, rng, spread)):
            figure = scene.figures[column]
            kind[row, column] = kinds[figure.kind]
            colour[row, column] = colours[figure.colour]
            middle[row, column] = spot
            radius[row, column] = rng.uniform(*RADII[figure.size])
    arrays = (ground, kind, colour, middle, radius)
    return Batch(*(torch.from_numpy(array) for array in arrays))


def _corner_table(device: torch.device) -> torch.Tensor:
    """[kinds, CORNERS, 2]: outlines padded by repeating the last corner (circles unused)."""
    rows = []
    for kind in KINDS:
        outline = OUTLINES.get(kind, [(0.0, 0.0)])
        rows.append(outline + [outline[-1]] * (CORNERS - len(outline)))
    return torch.tensor(rows, device=device)


def _distances(x: torch.Tensor, y: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Signed distance of points [n, p] to polygons [n, CORNERS, 2], negative inside: [n, p]."""
    nearest = torch.full_like(x, 1e12)
    inside = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for index in range(CORNERS):
        ax, ay = corners[:, index, 0, None], corners[:, index, 1, None]
        bx, by = corners[:, index - 1, 0, None], corners[:, index - 1, 1, None]
        ex, ey = bx - ax, by - ay
        along = ((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey).clamp_min(1e-12)
        along = along.clamp(0, 1)
        gap = (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2
        nearest = torch.minimum(nearest, gap)
        spans = (ay <= y) != (by <= y)
        crossing = ax + (y - ay) * ex / torch.where(ey == 0, torch.ones_like(ey), ey)
        inside ^= spans & (x < crossing)
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def render(batch: Batch, device: str = "cpu", chunk: int = 512, side: int = SIDE) -> torch.Tensor:
    """Draw placed scenes as uint8 pictures [n, 3, side, side] on the device."""
    parts = [
        _render_part(batch.part(start, start + chunk, device), side)
        for start in range(0, len(batch), chunk)
    ]
    return torch.cat(parts)


def _render_part(batch: Batch, side: int) -> torch.Tensor:
    device = batch.ground.device
    grounds = torch.tensor(list(GROUNDS.values()), device=device, dtype=torch.float32)
    palette = torch.tensor(list(PALETTE.values()), device=device, dtype=torch.float32)
    table = _corner_table(device)
    scale = side / SIDE
    window = min(side, 2 * math.ceil(REACH * scale))
    cells = torch.arange(window, device=device)
    row = torch.arange(len(batch), device=device)[:, None, None]
    picture = grounds[batch.ground][:, None, None].expand(-1, side, side, -1).clone()
    for column in range(batch.kind.shape[1]):
        kind, middle = batch.kind[:, column], batch.middle[:, column] * scale
        radius = batch.radius[:, column, None] * scale
        # Only a window around the figure can change.
        start = (middle - window / 2).round().long().clamp(0, side - window)
        across, down = start[:, :1] + cells, start[:, 1:] + cells
        x = (across + 0.5)[:, None].expand(-1, window, -1).flatten(1)
        y = (down + 0.5)[:, :, None].expand(-1, -1, window).flatten(1)
        away = torch.hypot(x - middle[:, :1], y - middle[:, 1:]) - radius
        corners = middle[:, None] + table[kind] * radius[:, :, None]
        is_circle = (kind == KINDS.index("circle"))[:, None]
        distance = torch.where(is_circle, away, _distances(x, y, corners))
        # Approximate coverage of a pixel: half if its centre lies on the edge.
        cover = (0.5 - distance).clamp(0, 1).view(-1, window, window, 1)
        place = (row, down[:, :, None], across[:, None])
        ink = palette[batch.colour[:, column]][:, None, None]
        picture[place] = picture[place] * (1 - cover) + ink * cover
    return picture.round().to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """uint8 pictures [n, 3, h, w] as PIL images."""
    arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def draw(scenes: Sequence[Scene], seed: int = 0) -> list[Image.Image]:
    """Draw scenes as PIL images. The seed determines positions and sizes of the figures."""
    return to_images(render(place(scenes, random.Random(f"draw-{seed}"))))
