"""Other jobs never change an answer: the same tokens alone and together, greedy and seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from predictors.chat.invariance import has_equal_rows
from predictors.chat.request import ChatRequest, Sampling
from tests.chat.room import GREEDY, Room, chat, png, tokens_of

SEEDED = Sampling(temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1)
EIGHT = (
    chat(png(1), "one", max_tokens=24),
    chat("text only, greedy", max_tokens=9),
    chat(png(2, 200, 90), "a longer question about this picture", sampling=SEEDED, seed=7),
    chat(png(3), png(4, 90, 60), "two", sampling=replace(SEEDED, temperature=1.5), seed=8),
    chat("x" * 150, sampling=Sampling(frequency_penalty=0.7, temperature=1.0), seed=2**53 - 1),
    chat("presence", sampling=Sampling(presence_penalty=1.5, temperature=0.0), max_tokens=30),
    chat(png(5, 300, 300), "large", max_tokens=16),
    chat(png(6), "seeded", sampling=replace(GREEDY, temperature=1.0), seed=9, max_tokens=20),
)


def joined(room: Room, requests: Sequence[ChatRequest], moments: Sequence[int]) -> list[list[int]]:
    """Tokens of jobs that join at the given steps."""
    jobs = [room.job(request) for request in requests]
    step = 0
    while room.engine.busy or step <= max(moments):
        for job, moment in zip(jobs, moments, strict=True):
            if moment == step:
                assert room.engine.admit(job)
        room.engine.step(room.engine.active)
        step += 1
    return [tokens_of(job) for job in jobs]


@pytest.fixture(scope="module")
def alone(wild: Room) -> list[list[int]]:
    """The tokens of each of the eight alone."""
    return [wild.answer(replace(request, ignore_eos=True)) for request in EIGHT]


@pytest.mark.parametrize(
    "moments",
    [(0, 0, 0, 0, 0, 0, 0, 0), (0, 1, 3, 4, 4, 9, 11, 2), (14, 12, 10, 8, 6, 4, 2, 0)],
    ids=["together", "one by one", "last first"],
)
def test_eight_different_jobs_together_give_the_tokens_they_give_alone(
    wild: Room, alone: list[list[int]], moments: tuple[int, ...]
) -> None:
    requests = [replace(request, ignore_eos=True) for request in EIGHT]
    assert joined(wild, requests, moments) == alone
    assert [len(tokens) for tokens in alone] == [r.max_tokens for r in requests]
    assert len({tuple(tokens) for tokens in alone}) == 8


def test_a_decode_step_gives_each_row_the_same_bits_wherever_it_sits(wild: Room) -> None:
    fresh = Room.open()
    assert has_equal_rows(fresh.runner)
    assert wild.runner.decode_widths == (8,)


def test_rows_that_differ_are_noticed_and_decoded_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("predictors.chat.invariance.has_equal_rows", lambda runner: False)
    room = Room.open(slots=4)
    assert room.runner.decode_widths == (1,)
    assert "one by one" in caplog.text
    requests = [chat("a"), chat("b"), chat("c")]
    assert room.answers(requests) == [room.answer(request) for request in requests]


def test_a_seed_decides_and_another_seed_decides_otherwise(wild: Room) -> None:
    request = chat("draw", sampling=Sampling(temperature=1.2), max_tokens=12, ignore_eos=True)
    first = wild.answer(replace(request, seed=3))
    assert wild.answer(replace(request, seed=3)) == first
    assert wild.answer(replace(request, seed=4)) != first


def test_without_the_promise_decoding_takes_the_smallest_width_that_fits() -> None:
    room = Room.open(slots=8, deterministic="off")
    assert room.runner.decode_widths == (1, 2, 4, 8)
    requests = [chat(f"number {i}") for i in range(5)]
    assert room.answers(requests) == [room.answer(request) for request in requests]


def random_traffic(room: Room, seed: int) -> dict[int, list[int]]:
    """Tokens of those of `EIGHT` that are not evicted, by index: three are, in a random order of
    admissions, evictions and steps of a few (as after a failure). Checks the pages throughout."""
    chance, pool = random.Random(seed), room.pool
    waiting = [(i, room.job(replace(r, ignore_eos=True))) for i, r in enumerate(EIGHT)]
    stayed, leavers = {}, 3
    while waiting or room.engine.busy:
        active = room.engine.active
        action = chance.random()
        if waiting and action < 0.3:
            index, job = waiting.pop(chance.randrange(len(waiting)))
            assert room.engine.admit(job)
            stayed[index] = job
        elif active and action < 0.4 and leavers:
            leavers -= 1
            left = chance.choice(active)
            room.engine.evict(left)
            before = tokens_of(left)
            room.engine.step(room.engine.active)
            assert tokens_of(left) == before  # what was in flight for it is dropped
            stayed = {i: job for i, job in stayed.items() if job is not left}
        elif active:
            room.engine.step(chance.sample(active, chance.randint(1, len(active))))
        owned = [page for job in room.engine.active for page in pool.owned(job)]
        assert len(set(owned)) == len(owned)
        assert len(owned) + pool.num_free == pool.num_pages
    assert pool.num_free == pool.num_pages
    return {i: tokens_of(job) for i, job in stayed.items()}


@pytest.mark.parametrize("seed", range(3))
def test_answers_stay_the_same_when_other_jobs_come_leave_or_are_stepped_apart(
    wild: Room, alone: list[list[int]], seed: int
) -> None:
    stayed = random_traffic(wild, seed)
    assert len(stayed) == 5
    assert stayed == {i: alone[i] for i in stayed}


@pytest.mark.parametrize("slots", [1, 3, 5, 6])
def test_any_number_of_slots_decodes_at_one_width_with_equal_rows(slots: int) -> None:
    runner = Room.open(slots=slots).runner
    assert len(runner.decode_widths) == 1
    assert runner.decode_widths[0] >= slots
    assert has_equal_rows(runner)
