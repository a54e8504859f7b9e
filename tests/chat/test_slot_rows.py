"""Rows of decode steps from the table of slots, beside choices made one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.chat.choices import NUM_PLAIN, Choices, pack_choices, pack_controlled
from predictors.chat.request import Controls, Sampling
from predictors.chat.sampling import SAMPLERS, noise_key
from predictors.chat.sequence import Sequence
from predictors.chat.slot_rows import SlotRows
from predictors.chat.work import ChatWork
from predictors.serving.job import Job

SLOTS, VOCAB = 6, 90

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.sampled_from([-1, 0, 1, 40, VOCAB, 5000]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    min_p=st.sampled_from([0.0, 0.1]),
)
controls = st.builds(
    Controls,
    logit_bias=st.sampled_from([(), ((3, 1.5),)]),
    min_tokens=st.integers(0, 3),
    logprobs=st.sampled_from([None, 0, 5]),
)
answers = st.tuples(samplings, controls, st.integers(0, 2**64 - 1), st.integers(1, 40))


def sequence_in(slot: int, answer: tuple[Sampling, Controls, int, int]) -> Sequence:
    sampling, asked, seed, launched = answer
    prompt = torch.arange(7 + slot)
    work = ChatWork(
        *(prompt, prompt.expand(3, -1), 5 + slot, (), sampling, seed, 64, ()),
        ignore_eos=True,
        controls=asked,
    )
    sequence = Sequence(Job(f"in {slot}", work), slot, len(prompt), frozenset())
    sequence.num_launched = launched
    return sequence


@settings(max_examples=150, deadline=None)
@given(found=st.lists(answers, min_size=1, max_size=SLOTS), turn=st.integers(0, SLOTS))
def test_rows_of_the_table_are_those_made_one_by_one(
    found: list[tuple[Sampling, Controls, int, int]], turn: int
) -> None:
    group = [sequence_in(slot, answer) for slot, answer in enumerate(found)]
    group = group[turn:] + group[:turn]
    table = SlotRows(SLOTS, VOCAB)
    for sequence in group:
        table.put(sequence)
    rows, expected = table.rows(group), Choices.of([s.next_choice() for s in group], VOCAB)
    assert rows.ints.T.tolist() == [
        [
            s.slot,
            s.num_prompt_tokens + s.num_launched - 1,
            s.work.next_position + s.num_launched - 1,
            s.num_launched - 1,
        ]
        for s in group
    ]
    assert rows.choices.ints.tolist() == expected.ints.tolist()
    assert rows.choices.floats.tolist() == expected.floats.tolist()
    assert list(rows.choices.scored) == list(expected.scored)


def test_a_slot_keeps_nothing_of_the_answer_before() -> None:
    table, drawn = SlotRows(SLOTS, VOCAB), Sampling(temperature=1.0, top_k=4, min_p=0.2)
    table.put(sequence_in(2, (drawn, Controls(logprobs=1, min_tokens=9), 8, 1)))
    plain = sequence_in(2, (Sampling(temperature=0.0), Controls(), 0, 3))
    table.put(plain)
    choices = table.rows([plain]).choices
    assert choices.ints[:, 0].tolist() == [2, 3, VOCAB, 0, 1, 0, 0]
    assert not choices.is_controlled
    assert not choices.scored


def test_adapters_are_given_for_all_rows_or_for_none() -> None:
    table = SlotRows(SLOTS, VOCAB)
    group = [sequence_in(slot, (Sampling(), Controls(), 1, 1)) for slot in range(2)]
    for sequence in group:
        table.put(sequence)
    assert table.rows(group).adapters == ()
    group[1].language_adapters = ((0, 0.5),)
    assert table.rows(group).adapters == [(), ((0, 0.5),)]
    assert table.rows(group).take([1, 0]).adapters == [((0, 0.5),), ()]


# -- choices ---------------------------------------------------------------------------------------
def choices_of(*found: tuple[Sampling, Controls, int, int]) -> Choices:
    group = [sequence_in(slot, answer) for slot, answer in enumerate(found)]
    return Choices.of([sequence.next_choice() for sequence in group], VOCAB)


@settings(max_examples=100, deadline=None)
@given(found=st.lists(answers, min_size=1, max_size=4), width=st.integers(4, 8))
def test_padding_rows_are_greedy_and_change_nothing(
    found: list[tuple[Sampling, Controls, int, int]], width: int
) -> None:
    choices, n = choices_of(*found), len(found)
    ints, floats = pack_choices(choices, width, VOCAB, SLOTS)
    assert ints[:, :n].tolist() == choices.ints[:NUM_PLAIN].tolist()
    assert floats[:, :n].tolist() == choices.floats[:NUM_PLAIN].tolist()
    assert ints[:, n:].T.tolist() == [[SLOTS, 0, VOCAB, 0, 1]] * (width - n)
    assert floats[:, n:].T.tolist() == [[1, 0, 0, 1, 1]] * (width - n)
    masked = {n - 1: 3}
    ints, floats = pack_controlled(choices, masked, width, VOCAB, SLOTS)
    early = choices.ints[6].tolist()
    early[n - 1] = 0  # the mask leaves those tokens out
    added = [[3 * (i == n - 1), int(i == n - 1), int(choices.ints[5, i]), early[i]]
             for i in range(n)]  # fmt: skip
    assert ints[NUM_PLAIN:, :n].T.tolist() == added
    assert not ints[NUM_PLAIN:, n:].any()
    assert floats[5].tolist() == [*choices.floats[5].tolist(), *[-np.inf] * (width - n)]


def test_the_cheapest_sampler_that_serves_all_rows_is_taken() -> None:
    greedy, drawn = Sampling(temperature=0.0, top_p=0.5), Sampling()
    names = list(SAMPLERS)
    of = {
        names[0]: [greedy, greedy],
        names[1]: [greedy, drawn, replace(drawn, top_k=VOCAB + 1)],
        names[2]: [drawn, replace(drawn, top_p=0.9)],
    }
    for name, kinds in of.items():
        choices = choices_of(*((kind, Controls(), 1, 1) for kind in kinds))
        assert choices.sampler(VOCAB) == name


def test_min_p_of_a_greedy_row_controls_nothing() -> None:
    greedy = Sampling(temperature=0.0, min_p=0.5)
    assert not choices_of((greedy, Controls(), 1, 1)).is_controlled
    assert choices_of(
        (greedy, Controls(), 1, 1), (Sampling(min_p=0.5), Controls(), 1, 1)
    ).is_controlled
    assert choices_of((greedy, Controls(min_tokens=2), 1, 1)).is_controlled
    assert not choices_of((greedy, Controls(min_tokens=2), 1, 2)).is_controlled


def test_a_drawn_row_has_the_key_of_its_seed_and_number() -> None:
    seeds = (0, 1, 2**63, 2**64 - 1)
    choices = choices_of(*((Sampling(), Controls(), seed, 9) for seed in seeds))
    assert choices.ints[3].tolist() == [noise_key(seed, 9) for seed in seeds]
