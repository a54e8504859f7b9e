"""A step's numbers and its choice's come in one copy, and are what separate copies would bring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.choices import Choices, TokenChoice, pack_choices, widened
from predictors.chat.request import Sampling
from predictors.chat.rows import DecodeRows
from predictors.chat.step_inputs import StepInputs
from predictors.compute.device.placement import Placement
from tests.chat.counted_operations import CountedOperations

WIDTHS, VOCAB, PADDING = (1, 2, 3, 8, 24), 1000, 24
CPU = Placement(torch.device("cpu"), torch.float32, "off")
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 2 * VOCAB),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
)


@given(width=st.sampled_from(WIDTHS), data=st.data())
def test_every_number_is_at_its_place_and_the_rest_is_padding(
    width: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, width))
    samplings = data.draw(st.lists(SAMPLINGS, min_size=count, max_size=count))
    ints = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 2**62), min_size=count, max_size=count),
                min_size=4,
                max_size=4,
            )
        )
    )
    choices = Choices.of(
        [TokenChoice(i, sampling, 17 * i, i + 1) for i, sampling in enumerate(samplings)], VOCAB
    )
    inputs = StepInputs(WIDTHS, VOCAB, PADDING, CPU)
    inputs.put(DecodeRows(ints, choices), width)
    expected = (
        *pack_choices(choices, width, VOCAB, PADDING),
        widened(ints, width, (PADDING, 0, 0, 0)),
    )
    for ours, theirs in zip((*inputs.choice(width), inputs.rows(width)), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("width", WIDTHS)
def test_memory_stays_where_it_is_and_no_width_writes_to_another(width: int) -> None:
    inputs = StepInputs(WIDTHS, VOCAB, PADDING, CPU)
    before = {each: inputs.rows(each).data_ptr() for each in WIDTHS}
    choices = Choices.of([TokenChoice(3, Sampling(), 1, 1)], VOCAB)
    inputs.put(DecodeRows(np.array([[5], [6], [7], [8]]), choices), width)
    assert {each: inputs.rows(each).data_ptr() for each in WIDTHS} == before
    for other in set(WIDTHS) - {width}:
        assert not any(part.any() for part in (*inputs.choice(other), inputs.rows(other)))


def test_a_step_allocates_and_copies_once_and_makes_no_views() -> None:
    inputs, width = StepInputs(WIDTHS, VOCAB, PADDING, CPU), 3
    choices = Choices.of([TokenChoice(3, Sampling(), 1, 1)], VOCAB)
    rows = DecodeRows(np.array([[5], [6], [7], [8]]), choices)
    with CountedOperations() as counted:
        inputs.put(rows, width)
    # memory, its detaching for numpy, and the copy
    assert counted.count == 3
