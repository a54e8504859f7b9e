"""How a linear over up to 64 rows is cut into the blocks of hopper_linear.cu on a card with so much
room.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_ROWS = 64
BLOCK_K = 64
BOXES = (8, 32, 64)
"""Rows of x that a kernel may be made for."""
STAGE_BYTES = MOST_ROWS * BLOCK_K * 2
"""Least bytes of a stage: a wgmma reads so much."""
SHARED_BYTES = 220 * 1024
"""Of the 227 KiB that a block may have: a small block of the kernel after fits beside it."""
MOST_FEATURES = 8192
"""Of a row that is normed: `norm` keeps its values in registers."""
MOST_WIDTH, MOST_SUMS = 256, 320
"""Features of a wgmma, and sums that a thread has room for, in pairs."""
SPLITS = 4
"""Blocks that share a tile of a narrow linear. More of them wait longer for each other, and more
multiprocessors are left over, since a cluster lies in one part of the card."""
WIDE = 128
"""Features per multiprocessor from which on K need not be split, in linears whose output is no
stream."""


class Tiling(NamedTuple):
    """A kernel's macros, but for its epilogue's."""

    box: int
    width: int
    parts: int
    splits: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        stage = self.box * BLOCK_K * 2 + self.parts * self.width * BLOCK_K * 2
        return self.stages * (stage + 16) + _sums_bytes(self.width, self.splits)


class Room(NamedTuple):
    """Blocks that the card runs at once: one by one, and clusters of `SPLITS`."""

    blocks: int
    clusters: int


def tile_for(rows: int, width: int, features: int, parts: int, room: Room) -> Tiling:
    """For `rows` of x (rows, features) and a weight (parts * width, features): as many tiles as the
    card runs at once, or a multiple of it, so that no multiprocessor has one more than others."""
    box = box_for(rows)
    tile, splits = _tile_of(width, parts, room)
    stage = box * BLOCK_K * 2 + parts * tile * BLOCK_K * 2 + 16
    fitting = (SHARED_BYTES - _sums_bytes(tile, splits)) // stage
    return Tiling(box, tile, parts, splits, min(fitting, -(-(features // BLOCK_K) // splits)))


def _tile_of(width: int, parts: int, room: Room) -> tuple[int, int]:
    """Features of a tile, and the blocks that share it: the same for any number of rows, since the
    sums of a stream's squares depend on it."""
    is_split = parts == 1 and width < max(WIDE * room.blocks, MOST_FEATURES + 1)
    splits, at_once = (SPLITS, room.clusters) if is_split else (1, room.blocks)
    most = min(MOST_WIDTH, MOST_SUMS // parts // 8 * 8)
    waves = -(-width // (at_once * most))
    least = -(-(STAGE_BYTES // (BLOCK_K * 2) - BOXES[0]) // parts)
    tile = max(-(-width // (at_once * waves)), least, 8)
    return -(-tile // 8) * 8, splits


def stream_tiles(features: int, room: Room) -> tuple[int, int]:
    """The features of a tile of a stream, whose squares are summed apart, and the number of
    tiles."""
    tile, _ = _tile_of(features, 1, room)
    return tile, -(-features // tile)


def box_for(rows: int) -> int:
    return next(size for size in BOXES if rows <= size)


def _sums_bytes(width: int, splits: int) -> int:
    return MOST_ROWS * (width + 4) * 4 if splits > 1 else 0
