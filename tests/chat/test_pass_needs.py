"""The passes that a request can't do without: widths of its prompt, graphs of its pictures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.limits import chunk_widths
from predictors.chat.pass_needs import NO_NEEDS, PassNeeds
from predictors.chat.promised import PassKind
from predictors.chat.scheduling import SequenceProgress, next_chunk
from tests.chat.room import Room, chat, png


@given(tokens=st.integers(1, 2000), largest=st.integers(1, 300))
def test_the_widths_of_a_prompt_are_those_that_the_planner_takes(tokens: int, largest: int) -> None:
    widths = chunk_widths(largest)
    taken, done = set(), 0
    while done < tokens:
        found = next_chunk(SequenceProgress("a", done, tokens), widths)
        taken.add(found.width)
        done += found.chunks[0].length
    needs = PassNeeds(widths, lambda num_patches: None, is_fixed=True)
    assert needs.widths_of(tokens) == taken


@pytest.mark.parametrize("is_fixed", [True, False])
def test_a_request_needs_the_graph_of_each_picture_that_has_one(is_fixed: bool) -> None:
    work = Room.make(max_context=2048).inputs.prepare(chat(png(1), png(2, 300, 300), png(3), "x"))
    small, large = sorted({p.prepared.grid[0] * p.prepared.grid[1] for p in work.pictures})
    graphs = {small: 64, large: None}
    needs = PassNeeds((8192,), graphs.__getitem__, is_fixed=is_fixed)
    prompt = {(PassKind.PROMPT, 8192)} if is_fixed else set()
    assert needs.of(work) == {(PassKind.TOWER, 64), *prompt}
    assert NO_NEEDS.of(work) == set()
