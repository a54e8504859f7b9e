"""Parts of prompts share a pass: each row has its token, positions, place and tile."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.choices import TokenChoice
from predictors.chat.decoder.paged import TILE
from predictors.chat.request import Sampling
from predictors.chat.rows import PromptPart, pack_prompts
from predictors.chat.scheduling import PACK_PROMPTS
from tests.chat.counted_operations import CountedOperations

PAGE, PADDING = 16, 64


def part(slot: int, start: int, count: int, *, ends: bool) -> PromptPart:
    """Of a prompt whose token i is 1000 + i, with positions of their own on each axis."""
    index = np.arange(start, start + count)
    pages = [7 + 3 * slot + i for i in range(-(-(start + count) // PAGE) + slot % 2)]
    choice = TokenChoice(slot, Sampling(), 0, 0) if ends else None
    positions = np.stack((index, 2 * index, 3 * index))
    return PromptPart(slot, start, 1000 + index, positions, pages, (), choice)


PARTS = st.lists(
    st.tuples(st.integers(0, 100), st.integers(1, 150), st.booleans()), min_size=1, max_size=6
)


@given(drawn=PARTS, spare=st.integers(0, 2))
def test_rows_of_all_parts_lie_one_after_the_other(drawn: list[Any], spare: int) -> None:
    parts = [part(i, start, count, ends=ends) for i, (start, count, ends) in enumerate(drawn)]
    width = sum(-(-len(each.tokens) // TILE) * TILE for each in parts) + spare * TILE
    packed, firsts = pack_prompts(parts, width, PAGE, PADDING)
    tiles = width // TILE
    sizes = (width, 3 * width, width, tiles, tiles, tiles, PACK_PROMPTS)
    tokens, positions, places, slots, starts, real, last = packed.split(sizes)
    of_row: dict[int, tuple[PromptPart, int]] = {}
    for each, first in zip(parts, firsts, strict=True):
        assert first % TILE == 0
        of_row |= {first + i: (each, i) for i in range(len(each.tokens))}
    assert len(of_row) == sum(len(each.tokens) for each in parts)
    for row in range(width):
        tile, found = row // TILE, of_row.get(row)
        if found is None:
            assert (tokens[row], places[row]) == (0, 0)
            continue
        each, i = found
        index = each.start + i
        assert tokens[row] == 1000 + index
        assert positions.view(3, width)[:, row].tolist() == [index, 2 * index, 3 * index]
        assert places[row] == each.pages[index // PAGE] * PAGE + index % PAGE
        assert slots[tile] == each.slot
        assert starts[tile] == index - row % TILE
        assert real[tile] == min(TILE, len(each.tokens) - (i - row % TILE))
    ended = [
        first + len(p.tokens) - 1
        for p, first in zip(parts, firsts, strict=True)
        if p.choice is not None
    ]
    assert last.tolist() == ended + [0] * (PACK_PROMPTS - len(ended))
    for tile in set(range(tiles)) - {row // TILE for row in of_row}:
        assert (slots[tile], real[tile]) == (PADDING, 0)


def test_packing_runs_no_operation_of_torch_per_part() -> None:
    counts = []
    for number in (1, 8):
        parts = [part(i, 0, 20, ends=True) for i in range(number)]
        with CountedOperations() as counted:
            pack_prompts(parts, 512, PAGE, PADDING)
        counts.append(counted.count)
    assert counts[0] == counts[1]
