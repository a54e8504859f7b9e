"""Seeds of every protocol: their range, the seeds of a request's rows, and the random numbers that
seeds and ids are drawn from.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

from predictors.errors import InvalidRequest

MAX_SEED = 2**53 - 1
"""The largest whole number that JSON clients keep exactly."""
DRAWN = -1
"""The seed by which a caller asks for one that is drawn at random, as by none."""

SEED_SCHEMA: Mapping[str, Any] = {
    "type": "integer",
    "anyOf": [{"minimum": 0, "maximum": MAX_SEED}, {"const": DRAWN}],
    "description": f"Of row 0; row i uses seed + i. {DRAWN} draws one.",
}

BLOCK = 256  # numbers that are read at a time
_unused: deque[int] = deque()  # its `pop` is atomic
os.register_at_fork(after_in_child=_unused.clear)  # or a child would draw its parent's numbers


def draw_number() -> int:
    """A number from 0 to 2**64 - 1 of the operating system's random ones. Any thread.

    Read in blocks: each read gives the interpreter's lock away, for 8 bytes as for 2 KiB.
    """
    while True:
        try:
            return _unused.pop()
        except IndexError:
            _unused.extend(memoryview(os.urandom(8 * BLOCK)).cast("Q"))


def row_seeds(seed: int | None, num_rows: int) -> list[int]:
    """seed, seed + 1, ... of the rows of one request. Without a seed (None or `DRAWN`) the first
    one is drawn, and the others count up from it.

    Raises `InvalidRequest` for a seed that is out of range or leaves no room for the last row.
    """
    if seed is None or seed == DRAWN:
        seed = drawn_seed(num_rows)
    check_seed(seed)
    if seed + num_rows - 1 > MAX_SEED:
        raise InvalidRequest(
            f"seed {seed} plus {num_rows} rows passes the largest seed {MAX_SEED}", param="seed"
        )
    return [seed + row for row in range(num_rows)]


def drawn_seed(num_rows: int) -> int:
    """A seed drawn at random that leaves room for so many rows."""
    while (seed := draw_number() & MAX_SEED) > MAX_SEED + 1 - num_rows:
        pass
    return seed


def check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        shown = str(seed)[:32]
        raise InvalidRequest(
            f"seed must be from 0 to {MAX_SEED}, or {DRAWN} for one that is drawn, not {shown}",
            param="seed",
        )
