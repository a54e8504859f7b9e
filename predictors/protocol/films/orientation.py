"""The turn after which a film's frame is seen as its camera saw it, from FFmpeg's display matrix.

A matrix may also mirror, as those of front cameras do, which an angle alone does not tell.
"""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image

from predictors.errors import InvalidRequest

NEAR = 0.01  # of the matrix's largest number, that a number next to 0 may have
_MATRIX = struct.Struct("=9i")  # two columns and a third one that is not needed, row by row
_TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow turns against the clock
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def turn_of(frame: Any) -> Image.Transpose | None:
    """The turn of a decoded frame of PyAV. Raises `InvalidRequest` for one that is not by a
    multiple of 90 degrees."""
    raw = next((each for each in frame.side_data if each.type.name == "DISPLAYMATRIX"), None)
    if raw is None:
        return None
    a, b, _, c, d, *_ = _MATRIX.unpack(bytes(raw))
    numbers = (a, b, c, d)
    least = max(map(abs, numbers)) * NEAR
    if not least:  # a matrix of zeros, which players ignore
        return None
    signs = tuple((each > least) - (each < -least) for each in numbers)
    try:
        return _TURNS[signs]
    except KeyError as error:
        raise InvalidRequest(
            "is to be turned by other than 0, 90, 180 or 270 degrees, which is not done"
        ) from error


def is_sideways(turn: Image.Transpose | None) -> bool:
    """True if the turn changes width and height."""
    return turn in {
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
    }
