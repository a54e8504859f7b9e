"""Scales boxes from the coordinates that a model speaks in to those that a caller asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from predictors.chat.grounding.boxes import Convention, PictureBox
from predictors.chat.grounding.spoken import Corners, SpokenBox, read_boxes
from predictors.chat.request import PictureSize
from predictors.protocol.openai.coordinates import NORMALIZED, THOUSAND


def caller_boxes(
    text: str, pictures: Sequence[PictureSize], convention: Convention, coordinates: str
) -> tuple[PictureBox, ...]:
    """The boxes that an answer names, in their order, as whole numbers of `coordinates`: pixels of
    the caller's pictures, or thousandths of their sides.

    They are clipped to their picture; one that lies outside it is left out. With several pictures
    only boxes are kept whose picture the answer names ("Picture 2"), by the last name before the
    end of the box's object.
    """
    pictures = [size for size in pictures if isinstance(size, PictureSize)]  # and no films
    found = []
    for spoken in read_boxes(text) if pictures else ():
        number = 0 if len(pictures) == 1 else (spoken.picture or 0) - 1
        if not 0 <= number < len(pictures):
            continue
        size = pictures[number]
        said = (size.width, size.height) if convention == "pixels" else (THOUSAND, THOUSAND)
        wanted = (size.file_width, size.file_height)
        if coordinates == NORMALIZED:
            wanted = (THOUSAND, THOUSAND)
        if (box := _scaled(spoken, said, wanted)) is not None:
            found.append(PictureBox(number, spoken.label, box))
    return tuple(found)


def _scaled(
    spoken: SpokenBox, said: tuple[int, int], wanted: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """The box from a picture of size `said` in one of size `wanted`; None if it lies outside."""
    if not all(map(math.isfinite, spoken.corners)):
        return None
    left, right = _side(spoken.corners, 0, said[0], wanted[0])
    top, bottom = _side(spoken.corners, 1, said[1], wanted[1])
    if right < left or bottom < top:
        return None
    return round(left), round(top), round(right), round(bottom)


def _side(corners: Corners, axis: int, said: int, wanted: int) -> tuple[float, float]:
    """Both ends of a box along one axis, clipped to 0 .. `wanted`; the first is the greater one if
    nothing is left."""
    low, high = sorted((corners[axis], corners[axis + 2]))
    is_outside = high < 0 or low > said or (low < high and (high == 0 or low == said))
    if is_outside:
        return 1.0, 0.0
    scale = wanted / said
    return max(low, 0.0) * scale, min(high, float(said)) * scale
