"""Reads a scene from a picture's pixels by rules alone, independently of any trained network.

The background is the median of the border, and figures are connected components that differ from
it. The colour is the nearest one of the palette, kind and size are those of the drawn mask with the
best overlap, and the position is that of the centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from checkpoints.training.drawing import OUTLINES, RADII
from checkpoints.training.scenes import GROUNDS, KINDS, PALETTE, SIZES, Figure, Scene

DIFFERENT = 45.0  # distance from the ground's colour, in 0..255 per channel
SMALLEST = 40  # pixels of a component that counts; smaller ones are specks
OVERLAP = 0.75  # a figure must overlap its best mask at least this much
COLOUR = 75.0  # and its colour must be this near to the palette's
CANVAS = 64
SUPER = 4
Mask = np.ndarray


@dataclass(frozen=True)
class Found:
    """A component: the figure with the best overlap, that overlap, and its centre."""

    figure: Figure
    overlap: float
    colour_gap: float
    x: float
    y: float


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    gaps = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in names.items()}
    best = min(gaps, key=gaps.__getitem__)
    return best, gaps[best]


def _components(mask: Mask) -> list[Mask]:
    """4-connected components of at least SMALLEST pixels."""
    left = mask.copy()
    height, width = mask.shape
    found = []
    while left.any():
        start = divmod(int(left.argmax()), width)
        part, todo = np.zeros_like(mask), [start]
        left[start] = False
        while todo:
            y, x = todo.pop()
            part[y, x] = True
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and left[near]:
                    left[near] = False
                    todo.append(near)
        if part.sum() >= SMALLEST:
            found.append(part)
    return found


@cache
def _templates() -> list[tuple[str, str, Mask]]:
    """Masks of every kind at a few radii of each size, drawn by PIL in the centre of a small
    canvas."""
    drawn = []
    for kind in KINDS:
        for size in SIZES:
            low, high = RADII[size]
            for radius in np.linspace(low - 1, high + 1, 6):
                canvas = Image.new("L", (CANVAS * SUPER, CANVAS * SUPER))
                pen, middle = ImageDraw.Draw(canvas), CANVAS * SUPER / 2
                reach = radius * SUPER
                if kind == "circle":
                    low_edge, high_edge = middle - reach, middle + reach
                    pen.ellipse((low_edge, low_edge, high_edge, high_edge), 255)
                else:
                    corners = [(middle + x * reach, middle + y * reach) for x, y in OUTLINES[kind]]
                    pen.polygon(corners, fill=255)
                shades = np.asarray(canvas.resize((CANVAS, CANVAS), Image.Resampling.BOX))
                drawn.append((kind, size, shades > 127))
    return drawn


def _centred(mask: Mask) -> tuple[Mask | None, float, float]:
    """The component in the centre of a small canvas, and the centre of its bounding box."""
    ys, xs = np.nonzero(mask)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    x, y = (left + right) / 2, (top + bottom) / 2
    if bottom - top > CANVAS - 2 or right - left > CANVAS - 2:
        return None, x, y
    canvas = np.zeros((CANVAS, CANVAS), bool)
    row, column = (CANVAS - (bottom - top)) // 2, (CANVAS - (right - left)) // 2
    canvas[row : row + bottom - top, column : column + right - left] = mask[top:bottom, left:right]
    return canvas, x, y


def _overlap(mask: Mask, template: Mask) -> float:
    best = 0.0
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        moved = np.roll(mask, (dy, dx), (0, 1))
        both, either = (moved & template).sum(), (moved | template).sum()
        best = max(best, both / either)
    return best


def _identify(pixels: np.ndarray, mask: Mask) -> Found | None:
    canvas, x, y = _centred(mask)
    if canvas is None:
        return None
    # The median ignores the few blended pixels of the edge.
    colour, gap = _nearest(np.median(pixels[mask], axis=0), PALETTE)
    overlap, kind, size = max((_overlap(canvas, t), kind, size) for kind, size, t in _templates())
    return Found(Figure(size, colour, kind), overlap, gap, x, y)


def find(image: Image.Image) -> tuple[str | None, list[Found | None]]:
    """The name of the background (None for an unknown colour), and every component."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    shade = np.median(border, axis=0)
    ground, gap = _nearest(shade, GROUNDS)
    mask = np.linalg.norm(pixels - shade, axis=2) > DIFFERENT
    found = [_identify(pixels, part) for part in _components(mask)]
    return (ground if gap < COLOUR / 2 else None), found


def read(image: Image.Image) -> Scene | None:
    """The canonical scene of a picture, or None if it is unclear."""
    ground, found = find(image)
    sure = [f for f in found if f and f.overlap >= OVERLAP and f.colour_gap <= COLOUR]
    if ground is None or len(sure) != len(found) or len(sure) not in (1, 2):
        return None
    if len(sure) == 1:
        return Scene(ground, (sure[0].figure,))
    first, second = sure
    right, down = first.x - second.x, first.y - second.y
    if abs(right) >= abs(down):
        relation = "right" if right > 0 else "left"
    else:
        relation = "below" if down > 0 else "above"
    return Scene(ground, (first.figure, second.figure), relation).canonical()
