"""Controls of a row against transformers' processors; rows beside it keep every bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from predictors.chat.choices import Choices, TokenChoice, pack_choices, pack_controlled
from predictors.chat.constraints import mask_of
from predictors.chat.decoder.control_state import ControlState
from predictors.chat.decoder.state import SlotState
from predictors.chat.logit_changes import (
    CONTROLLED,
    TokenMasks,
    change_logits,
    num_words,
)
from predictors.chat.request import Controls, Sampling
from predictors.chat.sampling import (
    NOT_FINITE,
    ONE_PER_SAMPLER,
    SAMPLERS,
    Draw,
    drop_unlikely,
    filter_top,
)

VOCAB = 70  # no multiple of 32
ENDS = (3, 69)
PLAIN = Sampling(temperature=0.0)
BIAS = ((5, 4.0), (68, -7.5), (0, 1e-3))


@pytest.fixture
def slots() -> SlotState:
    return SlotState(4, 3, VOCAB, torch.device("cpu"))


@pytest.fixture
def state(slots: SlotState) -> ControlState:
    return ControlState(slots, 6, ENDS)


def logits_of(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def masks_of(rows: int, allowed: dict[int, set[int]]) -> TokenMasks:
    words = np.stack([mask_of(frozenset(each), num_words(VOCAB)) for each in allowed.values()])
    return TokenMasks(torch.from_numpy(words), {row: i for i, row in enumerate(allowed)})


def changed(
    state: ControlState,
    logits: Tensor,
    choices: Sequence[TokenChoice],
    allowed: dict[int, set[int]] | None = None,
) -> Tensor:
    """The logits after all changes; the slots are made ready for the choices."""
    for choice in choices:
        state.reset(choice.slot, choice.controls, lambda tensor: tensor)
    masks = masks_of(len(choices), allowed) if allowed else None
    rows = masks.rows if masks else {}
    words = masks.words if masks else state.words
    packed = pack_controlled(Choices.of(choices, VOCAB), rows, len(logits), VOCAB, 4)
    return change_logits(logits, state.changes_of(packed[0], words))


def test_a_bias_is_that_of_transformers(state: ControlState) -> None:
    logits = logits_of(1, 2)
    choices = [TokenChoice(2, PLAIN, 0, 0, Controls(logit_bias=BIAS)), TokenChoice(0, PLAIN, 0, 0)]
    ours = changed(state, logits, choices)
    theirs = SequenceBiasLogitsProcessor({(token,): value for token, value in BIAS})
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(ours[:1], theirs(prompt, logits[:1].clone()))
    assert torch.equal(ours[1], logits[1])


@pytest.mark.parametrize("position", range(5))
def test_before_min_tokens_no_end_comes_as_in_transformers(
    state: ControlState, position: int
) -> None:
    controls = Controls(min_tokens=3, stop_token_ids=frozenset({8}))
    ours = changed(state, logits_of(2, 1), [TokenChoice(1, PLAIN, 0, position, controls)])
    theirs = MinNewTokensLengthLogitsProcessor(10, 3, [*ENDS, 8])
    prompt = torch.zeros(1, 10 + position, dtype=torch.int64)
    assert torch.equal(ours, theirs(prompt, logits_of(2, 1)))


def test_a_mask_is_that_of_transformers(state: ControlState) -> None:
    logits = logits_of(3, 3)
    allowed = {0: {0, 31, 32, 69}, 2: {63, 64}}
    choices = [TokenChoice(i, PLAIN, 0, 0) for i in range(3)]
    ours = changed(state, logits, choices, allowed)
    for row, tokens in allowed.items():
        theirs = PrefixConstrainedLogitsProcessor(lambda *_, tokens=tokens: sorted(tokens), 1)
        prompt = torch.zeros(1, 1, dtype=torch.int64)
        assert torch.equal(ours[row], theirs(prompt, logits[row : row + 1].clone())[0])
    assert torch.equal(ours[1], logits[1])


def test_a_slot_keeps_nothing_of_an_earlier_answer(state: ControlState) -> None:
    controls = Controls(logit_bias=BIAS, min_tokens=9)
    logits = logits_of(4, 1)
    assert not torch.equal(changed(state, logits, [TokenChoice(1, PLAIN, 0, 0, controls)]), logits)
    assert torch.equal(changed(state, logits, [TokenChoice(1, PLAIN, 0, 0)]), logits)
    few = Controls(logit_bias=((5, 1.0),))
    later = changed(state, logits, [TokenChoice(1, PLAIN, 0, 0, few)])
    assert (later != logits).nonzero().tolist() == [[0, 5]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 2.0),
    top_k=st.integers(1, VOCAB),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.floats(1e-4, 1.0),
)
def test_min_p_keeps_what_transformers_keeps_after_temperature_top_k_and_top_p(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(seed, 1)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    theirs = MinPLogitsWarper(min_p)(None, theirs)
    choice = TokenChoice(0, Sampling(temperature, top_p, top_k, min_p=min_p), 0, 0)
    ints, floats = pack_controlled(Choices.of([choice], VOCAB), {}, 1, VOCAB, 4)
    none = torch.zeros(1, 1)
    draw = Draw(floats[3][:, None], floats[4][:, None], ints[2][:, None], none, none)
    draw = replace(draw, least=floats[5][:, None])
    ranked, tokens = filter_top(logits / draw.temperature, draw)
    ours = torch.empty_like(ranked).scatter_(1, tokens, drop_unlikely(ranked, draw))
    # at the very border the two round in another way
    assert (ours.isinf() != theirs.isinf()).sum() <= 1
    both = ~ours.isinf() & ~theirs.isinf()
    torch.testing.assert_close(ours[both], theirs[both])


SAMPLINGS = dict(zip(SAMPLERS, ONE_PER_SAMPLER, strict=True))


@pytest.mark.parametrize("way", SAMPLERS)
@pytest.mark.parametrize("seed", range(5))
def test_rows_without_controls_get_the_token_of_the_plain_sampler(
    slots: SlotState, state: ControlState, way: str, seed: int
) -> None:
    """Beside a row with all of them, penalties included."""
    slots.seen.copy_(torch.rand(slots.seen.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    slots.counts.copy_(slots.seen * 2.0)
    kind = replace(
        SAMPLINGS[way], repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1
    )
    plain = [TokenChoice(i, kind, seed + i, i) for i in range(3)]
    every = Controls(logit_bias=BIAS, min_tokens=9)
    mixed = [*plain[:2], TokenChoice(3, replace(kind, min_p=0.1), 1, 0, every), plain[2]]
    state.reset(3, every, lambda tensor: tensor)
    assert Choices.of(mixed, VOCAB).sampler(VOCAB) == way
    logits = logits_of(seed, 4)
    masks = masks_of(4, {2: {7, 9}})
    ints, floats = pack_controlled(Choices.of(mixed, VOCAB), masks.rows, 4, VOCAB, 4)
    found = state.choose_tokens(CONTROLLED[way], logits, ints, floats, masks.words)
    ints, floats = pack_choices(Choices.of(plain, VOCAB), 3, VOCAB, 4)
    expected = slots.choose_tokens(SAMPLERS[way], logits[[0, 1, 3]], ints, floats)
    assert found[[0, 1, 3]].tolist() == expected.tolist()
    assert int(found[2]) in {7, 9}


def test_a_masked_row_is_finite_and_a_broken_one_is_not(state: ControlState) -> None:
    """Of the logits as the model made them."""
    logits = logits_of(7, 2)
    logits[1, 40] = float("nan")  # a token that may not come
    masks = masks_of(2, {0: {12}, 1: {12}})
    choices = [TokenChoice(i, PLAIN, 0, 0) for i in range(2)]
    packed = pack_controlled(Choices.of(choices, VOCAB), masks.rows, 2, VOCAB, 4)
    found = state.choose_tokens(CONTROLLED["greedy"], logits, *packed, masks.words)
    assert found.tolist() == [12, NOT_FINITE]
