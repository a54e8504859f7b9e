"""Logits that are not finite are a failed job or a failed start, never an answer of `!!!!`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.chat.choices import Choices, TokenChoice, pack_choices
from predictors.chat.engine import ChatEngine
from predictors.chat.request import ChatRequest, Sampling
from predictors.chat.sampling import NOT_FINITE, SAMPLERS
from predictors.errors import EngineFailed, StepFailed
from tests.chat.room import Room, chat, png, tokens_of
from tests.tools.syncs import count_host_syncs

BAD = [float("nan"), float("inf"), float("-inf")]
GREEDY = Sampling(temperature=0.0)
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": Sampling(temperature=1.0),
    "sampled": Sampling(temperature=1.0, top_k=20, top_p=0.9),
}
TEXTS = ["the first one", "another, somewhat longer one that is there", "and a third"]


@pytest.fixture(scope="module", params=["plain", "ahead"])
def own(request: pytest.FixtureRequest, wild_checkpoint: Path) -> Room:
    """Large random weights, deterministic or a step ahead; its pages may be spoilt."""
    open_it = Room.open if request.param == "plain" else Room.open_ahead
    return open_it(wild_checkpoint, slots=4, prefill_chunk=64)


def requests(sampling: Sampling, *parts: str | bytes) -> list[ChatRequest]:
    given: dict[str, Any] = {"sampling": sampling, "ignore_eos": True, "max_tokens": 12}
    return [chat(*parts, text, seed=i, **given) for i, text in enumerate(TEXTS)]


def spoil_pages(room: Room, job: Any, value: float = float("nan")) -> None:
    """Make the values in the job's cache not finite."""
    for cache in room.runner._passes.caches:
        cache[:, list(room.engine._sequences[job].pages)] = value


def failed(job: Any) -> StepFailed:
    error = job.error
    assert isinstance(error, StepFailed)
    assert "not finite" in error.message
    return error


@pytest.mark.parametrize("way", SAMPLINGS)
def test_a_row_that_breaks_while_decoding_fails_alone(own: Room, way: str) -> None:
    asked = requests(SAMPLINGS[way])
    alone = [own.answer(request) for request in asked]
    jobs = [own.start(request) for request in asked]
    while not all(len(tokens_of(job)) >= 3 for job in jobs):
        own.engine.step(own.engine.active)
    spoil_pages(own, jobs[1])
    own.finish()
    failed(jobs[1])
    so_far = tokens_of(jobs[1])
    assert so_far == alone[1][: len(so_far)]
    assert 3 <= len(so_far) < 12
    assert [tokens_of(jobs[i]) for i in (0, 2)] == [alone[i] for i in (0, 2)]
    # its pages go to another job next, which must not read their content
    assert own.answers(asked) == alone
    assert own.pool.num_free == own.pool.num_pages


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("way", SAMPLINGS)
def test_a_picture_that_is_not_finite_fails_at_the_first_token(
    own: Room, way: str, value: float
) -> None:
    asked = requests(SAMPLINGS[way], png(1))
    alone = [own.answer(request) for request in asked]
    jobs = [own.job(request) for request in asked]
    placed = jobs[1].work.pictures[0]
    patches = replace(
        placed.prepared, key=b"bad", values=torch.full_like(placed.prepared.values, value)
    )
    jobs[1].work = replace(jobs[1].work, pictures=(replace(placed, prepared=patches),))
    for job in jobs:
        assert own.engine.admit(job)
    own.finish()
    failed(jobs[1])
    assert tokens_of(jobs[1]) == []
    assert b"bad" not in own.engine._picture_cache._kept
    assert [tokens_of(jobs[i]) for i in (0, 2)] == [alone[i] for i in (0, 2)]


def test_a_prompt_that_breaks_between_its_chunks_fails_at_the_first_token(own: Room) -> None:
    short, long = chat(TEXTS[0]), chat(" ".join(TEXTS * 12))
    alone = [own.answer(request) for request in (short, long)]
    jobs = [own.start(long), own.start(short)]
    own.engine.step(own.engine.active)
    spoil_pages(own, jobs[0])
    own.finish()
    failed(jobs[0])
    assert tokens_of(jobs[0]) == []
    assert [tokens_of(jobs[1]), own.answer(long)] == alone


def test_pages_of_a_broken_prompt_are_not_shared(wild_checkpoint: Path) -> None:
    room = Room.open(wild_checkpoint, slots=4, prefix_cache="on", page_tokens=16)
    asked = chat(" ".join(TEXTS * 4))
    alone = room.answer(asked)
    job = room.start(asked)  # shares what the first has left
    room.engine.step([job])
    spoil_pages(room, job)
    room.finish()
    failed(job)
    assert room.pool.num_named == 0
    assert room.answer(asked) == alone


def test_the_verdict_comes_with_the_token_and_costs_no_other_wait(own: Room) -> None:
    job = own.start(chat(TEXTS[0], ignore_eos=True))
    while len(tokens_of(job)) < 2:
        own.engine.step([job])
    with count_host_syncs() as sound:
        own.engine.step([job])
    spoil_pages(own, job)
    with count_host_syncs() as broken:
        own.engine.step([job])
    assert broken["Tensor.tolist"] == sound["Tensor.tolist"]
    assert broken.syncs == sound.syncs
    own.finish()
    failed(job)


@pytest.mark.parametrize("way", SAMPLERS)
@pytest.mark.parametrize("value", BAD)
def test_the_token_of_a_broken_row_is_no_token_and_feeds_a_real_one(
    own: Room, way: str, value: float
) -> None:
    state = own.runner._slots
    vocab = state.seen.shape[1]
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(1))
    choices = [TokenChoice(slot, SAMPLINGS[way], 5, 0) for slot in range(3)]
    ints, floats = pack_choices(Choices.of(choices, vocab), 3, vocab, state.padding)
    sound = state.choose_tokens(SAMPLERS[way], logits, ints, floats)
    logits[1, vocab // 3] = value
    found = state.choose_tokens(SAMPLERS[way], logits, ints, floats)
    assert found.tolist() == [sound[0], NOT_FINITE, sound[2]]
    assert state.feed[[0, 2], 0].tolist() == [sound[0], sound[2]]
    assert 0 <= state.feed[1, 0] < vocab


# -- warm-up -------------------------------------------------------------------------------------
def loaded(checkpoint: Path) -> ChatEngine:
    """An engine that is loaded but not warm."""
    warm: list[Callable[..., None]] = []
    made = ChatEngine.warm
    try:
        ChatEngine.warm = lambda self, progress: warm.append(progress)  # type: ignore[method-assign, assignment]
        return Room.open(checkpoint).engine
    finally:
        ChatEngine.warm = made  # type: ignore[method-assign]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("embedding", "the logits of warm-up prefill"),
        ("block", "the logits of warm-up prefill"),
        ("norm", "the logits of warm-up prefill"),
        ("vision", "the vision features of a warm-up picture"),
        ("merger", "the vision features of a warm-up picture"),
    ],
)
def test_a_weight_that_is_not_finite_fails_the_start(
    wild_checkpoint: Path, part: str, said: str, value: float
) -> None:
    engine = loaded(wild_checkpoint)
    decoder, tower = engine._launcher.runner._decoder, engine._launcher.pictures._encoder._tower
    weight = {
        "embedding": decoder.embedding.weight,
        "block": decoder.blocks[1].mlp.down.weight,  # type: ignore[union-attr]
        "norm": decoder.norm.weight,
        "vision": tower.blocks[0].attention.qkv.weight,  # type: ignore[union-attr]
        "merger": tower.merger.fc2.bias,
    }[part]
    assert isinstance(weight, torch.Tensor)
    weight.view(-1)[0] = value
    with pytest.raises(EngineFailed, match=rf"{said}.* are not finite; the weights are damaged"):
        engine.warm(lambda *_: None)
