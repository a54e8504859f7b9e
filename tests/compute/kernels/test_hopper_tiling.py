"""The tilings of few-row linears on Hopper."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictors.compute.kernels.hopper_tiling import (
    BLOCK_K,
    BOXES,
    MOST_FEATURES,
    MOST_ROWS,
    SHARED_BYTES,
    SPLITS,
    STAGE_BYTES,
    Room,
    stream_tiles,
    tile_for,
)

ROOMS = st.builds(Room, st.integers(16, 148), st.integers(4, 37))


@given(
    rows=st.integers(1, MOST_ROWS),
    width=st.integers(1, 12_000).map(lambda n: 16 * n),
    features=st.integers(1, 512).map(lambda n: BLOCK_K * n),
    parts=st.sampled_from([1, 2]),
    room=ROOMS,
)
def test_a_tiling_fits_a_block_and_fills_the_card(
    rows: int, width: int, features: int, parts: int, room: Room
) -> None:
    tile = tile_for(rows, width, features, parts, room)
    assert tile.box >= rows
    assert tile.width % 8 == 0
    assert tile.width <= 256
    assert tile.parts * tile.width <= 320
    assert tile.stages >= 1
    assert tile.shared_bytes <= SHARED_BYTES
    assert (tile.box + parts * tile.width) * BLOCK_K * 2 >= STAGE_BYTES
    at_once = room.clusters if tile.splits > 1 else room.blocks
    tiles = -(-width // tile.width)
    waves = -(-tiles // at_once)
    assert waves == 1 or parts * (tile.width - 8) * at_once * (waves - 1) < parts * width
    assert tile.splits == 1 or parts == 1


@given(
    width=st.integers(1, MOST_FEATURES // 16).map(lambda n: 16 * n),
    features=st.integers(1, 512).map(lambda n: BLOCK_K * n),
    room=ROOMS,
)
def test_linears_that_write_a_stream_cut_it_alike(width: int, features: int, room: Room) -> None:
    """Whatever the number of rows, so that a row's squares are summed in one order."""
    tile, count = stream_tiles(width, room)
    found = [tile_for(rows, width, features, 1, room) for rows in BOXES]
    assert {each.width for each in found} == {tile}
    assert {each.splits for each in found} == {SPLITS}
    assert tile * (count - 1) < width <= tile * count
