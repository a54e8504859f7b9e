"""Logprobs are the log-softmax of the raw logits, as transformers' model gives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from predictors.chat.request import ChatRequest, Controls, Sampling, ScoredDelta, TokenLogprob
from predictors.chat.sampling import NOT_FINITE
from predictors.chat.scores import MOST_LOGPROBS, score_tokens
from tests.chat.reference import Reference
from tests.chat.room import Room, chat, deltas_of, png
from tests.chat.token_grammars import constrained_job, one_of, run_together


def logits_of(rows: int, vocab: int) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(5)) * 4


def test_the_probabilities_of_all_tokens_sum_to_one_and_ranks_count_them() -> None:
    logits = logits_of(1, 500)
    ints, floats = score_tokens(logits.expand(500, -1), torch.arange(500))
    exact = logits[0].double().log_softmax(-1)
    torch.testing.assert_close(floats[:, 0].double(), exact, rtol=1e-6, atol=1e-5)
    assert floats[:, 0].double().exp().sum() == pytest.approx(1, abs=1e-6)
    order = exact.argsort(descending=True)
    assert ints[order, 0].tolist() == list(range(1, 501))
    assert ints[0, 1:].tolist() == order[:MOST_LOGPROBS].tolist()
    torch.testing.assert_close(floats[0, 1:].double(), exact[order[:MOST_LOGPROBS]])


def test_of_equals_the_lower_token_comes_first() -> None:
    logits = torch.zeros(1, 60)
    logits[0, [50, 7, 31]] = 2.0
    ints, floats = score_tokens(logits, torch.tensor([31]))
    assert ints[0, :4].tolist() == [1, 7, 31, 50]
    assert floats[0, 0] == floats[0, 1] == floats[0, 3]


def test_a_small_vocabulary_has_fewer_alternatives_and_a_broken_row_does_no_harm() -> None:
    ints, floats = score_tokens(logits_of(2, 6), torch.tensor([2, NOT_FINITE]))
    assert ints.shape == floats.shape == (2, 7)


def scores_of(room: Room, request: ChatRequest) -> list[TokenLogprob]:
    """Of an answer that runs alone; each delta has those of its tokens."""
    job = room.start(request)
    room.finish()
    deltas = deltas_of(job)
    assert all(isinstance(delta, ScoredDelta) for delta in deltas)
    return [s for delta in deltas if isinstance(delta, ScoredDelta) for s in delta.scores]


SHAPED = Sampling(temperature=0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.3)


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_scores_are_the_log_softmax_of_transformers(
    wild_checkpoint: Path, wild: Room, num_top: int
) -> None:
    """Before temperature, penalties, bias and filters, also where those choose another token."""
    controls = Controls(logit_bias=((9, 6.0),), logprobs=num_top)
    request = chat(
        png(1, 90, 60), "what?", sampling=SHAPED, seed=3, ignore_eos=True, controls=controls
    )
    found = scores_of(wild, request)
    reference = Reference.load(wild_checkpoint)
    given = reference.inputs(request)
    prompt = given["input_ids"]
    answer = torch.tensor([[score.token for score in found]])
    given["input_ids"] = torch.cat((prompt, answer), 1)
    for name in ("attention_mask", "mm_token_type_ids"):
        more = torch.ones_like(answer) if name == "attention_mask" else torch.zeros_like(answer)
        given[name] = torch.cat((given[name], more), 1)
    with torch.no_grad():
        logits = reference.model(**given).logits[0, prompt.shape[1] - 1 : -1].float()
    theirs = logits.log_softmax(-1)
    for score, row in zip(found, theirs, strict=True):
        assert score.logprob == pytest.approx(float(row[score.token]), abs=2e-4)
        assert score.rank == 1 + int((row > row[score.token]).sum())
        values, tokens = row.topk(max(1, num_top))
        assert [token for token, _ in score.top] == tokens[:num_top].tolist()
        expected = values[:num_top].tolist()
        assert [value for _, value in score.top] == pytest.approx(expected, abs=2e-4)
    assert any(score.rank > 1 for score in found)


def test_scores_change_no_token_and_others_get_plain_deltas(wild: Room) -> None:
    asks = chat("with", controls=Controls(logprobs=2), ignore_eos=True)
    plain = replace(asks, controls=Controls())
    other = chat("other", sampling=Sampling(temperature=1.0), seed=4, ignore_eos=True)
    alone = wild.answer(other)
    assert wild.answers([asks, other]) == [wild.answer(plain), alone]
    jobs = [wild.start(each) for each in (other, asks)]
    wild.finish()
    assert {type(delta).__name__ for delta in deltas_of(jobs[0])} == {"ChatDelta"}
    assert {type(delta).__name__ for delta in deltas_of(jobs[1])} == {"ScoredDelta"}


def test_a_token_under_a_grammar_has_the_logprob_it_has_without(wild: Room) -> None:
    request = chat("free", controls=Controls(logprobs=1))
    free = scores_of(wild, request)[0]
    forced = 17 if free.token != 17 else 18
    job = constrained_job(wild, request, one_of(wild, [forced]))
    run_together(wild, [job])
    first = deltas_of(job)[0]
    assert isinstance(first, ScoredDelta)
    assert first.tokens == (forced,)
    assert first.scores[0].top == free.top == ((free.token, free.logprob),)
    assert first.scores[0].logprob < free.logprob
    assert first.scores[0].rank > 1
