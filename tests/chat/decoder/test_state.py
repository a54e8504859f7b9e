"""Slots are reset together: all of them as one by one, by as many operations as for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.decoder.paged import SCRATCH_PAGE
from predictors.chat.decoder.state import SlotReset, SlotState
from tests.chat.counted_operations import CountedOperations

SLOTS, PAGES, VOCAB = 6, 4, 30
PROMPTS = st.none() | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)
RESETS = st.dictionaries(
    st.integers(0, SLOTS - 1),
    st.tuples(st.lists(st.integers(1, 99), max_size=PAGES), PROMPTS),
    min_size=1,
)


def used() -> SlotState:
    """A state whose slots had other sequences before."""
    state = SlotState(SLOTS, PAGES, VOCAB, torch.device("cpu"))
    random = torch.Generator().manual_seed(1)
    for part in (state.tables, state.feed, state.counts, state.counted):
        part.random_(0, 20, generator=random)
    state.seen.random_(0, 2, generator=random)
    return state


def reset_of(slot: int, pages: list[int], prompt: list[int] | None) -> SlotReset:
    return SlotReset(slot, pages, None if prompt is None else np.array(prompt))


@given(resets=RESETS)
def test_each_slot_has_its_pages_and_the_tokens_of_its_prompt(resets: dict[int, Any]) -> None:
    state, before = used(), used()
    state.reset([reset_of(slot, *rest) for slot, rest in resets.items()], lambda host: host)
    assert torch.equal(state.feed, before.feed)
    for slot in range(SLOTS + 1):
        pages, prompt = resets.get(slot, (None, None))
        if pages is not None:
            left = [SCRATCH_PAGE] * (PAGES - len(pages))
            assert state.tables[slot].tolist() == pages + left
        else:
            assert torch.equal(state.tables[slot], before.tables[slot])
        if prompt is not None:
            assert state.seen[slot].nonzero().flatten().tolist() == sorted(set(prompt))
            assert not state.counts[slot].any()
            assert state.counted[slot] == 0
        else:
            for part in ("seen", "counts", "counted"):
                assert torch.equal(getattr(state, part)[slot], getattr(before, part)[slot])


def test_a_token_that_the_vocabulary_lacks_is_no_token_of_the_next_slot() -> None:
    with pytest.raises(IndexError):
        used().reset([reset_of(0, [1], [VOCAB])], lambda host: host)


def test_many_slots_take_as_many_operations_and_copies_as_one() -> None:
    counts, copies = [], []
    for slots in (1, SLOTS):
        moved: list[torch.Tensor] = []
        resets = [reset_of(slot, [1, 2], [3, 4, 5]) for slot in range(slots)]
        state = used()
        with CountedOperations() as counted:
            state.reset(resets, lambda host, moved=moved: moved.append(host) or host)
        counts.append(counted.count)
        copies.append(len(moved))
    assert counts[0] == counts[1]
    assert copies == [1, 1]
