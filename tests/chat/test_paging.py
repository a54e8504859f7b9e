"""Pages that grow and are given back: every sequence always finds what it wrote, gets all its
tokens once, and ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from predictors import metrics
from predictors.chat.kv_cache import PagePool, page_names
from predictors.chat.launching import ends_prompt
from predictors.chat.limits import EngineLimits
from predictors.chat.paging import Paging
from predictors.chat.planning import PACKED_WAIT_STEPS, LaunchedStep, StepPlanner
from predictors.chat.request import NO_CONTROLS, ChatRequest, Controls, Sampling
from predictors.chat.runner import ChatRunner
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence
from predictors.chat.vision.pictures import PictureCache
from predictors.chat.work import ChatWork
from predictors.serving.accounts import Account
from predictors.serving.job import Job
from tests.chat.room import Room, chat, deltas_of, tokens_of
from tests.chat.test_invariance import EIGHT

PAGES, SIZE, SLOTS = 10, 4, 4
LIMITS = EngineLimits(SLOTS, SIZE, PAGES, PAGES * SIZE, (SLOTS,), (4, 8), spare_slots=2)
METRICS = ChatMetrics("paging")


class Read:
    """The host copy of a scripted step."""

    def result(self) -> torch.Tensor:
        return torch.empty(0)


def work_of(prompt: Many[int], max_tokens: int, expected: float) -> ChatWork:
    tokens = torch.tensor(prompt, dtype=torch.int64)
    positions = (torch.arange(len(prompt)) + 100).expand(3, -1)
    sizes = {"max_tokens": max_tokens, "expected_tokens": expected}
    return ChatWork(
        tokens, positions, 100 + len(prompt), (), Sampling(), 0, stop=(), ignore_eos=False, **sizes
    )


class Lives(RuleBasedStateMachine):
    """Sequences of three callers over few pages. The cache is a dict: what stands in it must be
    what its reader has written, or another with the same beginning."""

    is_ahead = False

    def __init__(self) -> None:
        super().__init__()
        self.sequences: dict[ChatJob, Sequence] = {}
        self.planner = StepPlanner(SLOTS, PictureCache(0, METRICS))
        self.pool = PagePool(PAGES, SIZE)
        args = (self.pool, self.sequences, self.planner.holders, LIMITS, METRICS)
        self.paging = Paging(*args, may_preempt=True)
        self.accounts = [Account("a"), Account("b", 2.0), Account("c")]
        self.slots = list(range(SLOTS + 2))
        self.cache: dict[tuple[int, int], tuple[int, int]] = {}
        self.tables: dict[int, tuple[int, ...]] = {}
        self.newest: dict[int, int] = {}  # by slot, as on the device
        self.in_flight: list[tuple[Sequence, int]] = []
        self.number = self.clock = 0
        self.oldest_with_pages: Sequence | None = None

    # -- the device ------------------------------------------------------------------------------
    def written(self, sequence: Sequence, tokens: Many[int], start: int) -> None:
        for i, token in enumerate(tokens, start):
            page = self.tables[sequence.slot][i // SIZE]
            self.cache[page, i % SIZE] = (token, 100 + i)

    def chosen(self, sequence: Sequence, upto: int) -> int:
        """The next token, made of everything that the sequence sees in the cache."""
        table = self.tables[sequence.slot]
        seen = [self.cache[table[i // SIZE], i % SIZE] for i in range(upto)]
        assert [position for _, position in seen] == list(range(100, 100 + upto))
        return answer_to([token for token, _ in seen])

    # -- rules -----------------------------------------------------------------------------------
    @rule(
        caller=st.integers(0, 2),
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        max_tokens=st.integers(1, 24),
        expected=st.integers(0, 6),
        shares=st.booleans(),
    )
    def admit(
        self, caller: int, prompt: list[int], max_tokens: int, expected: int, shares: bool
    ) -> None:
        work = work_of(prompt, max_tokens, min(expected, max_tokens))
        holders, account = self.planner.holders, self.accounts[caller]
        if not holders.has_slot_for(account, SLOTS, 2):
            return
        job: ChatJob = Job(f"{self.number}", work)
        job.account = account
        names = page_names(work, SIZE) if shares else ()
        sequence = Sequence(job, self.slots[-1], len(prompt), frozenset(), names)
        free = self.pool.num_free
        if not self.paging.admit(sequence):
            assert self.pool.num_free == free
            assert self.sequences  # alone everything fits
            return
        self.number += 1
        self.slots.pop()
        self.sequences[job] = sequence
        holders.add(job)

    @precondition(lambda self: self.sequences)
    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1))
        self.evict(list(self.sequences.values())[index])

    @rule()
    def all_end(self) -> None:
        """All come to their end, in no more steps than if each were alone and read twice."""
        tokens = sum(
            2 * s.num_prompt_tokens + 3 * s.work.max_tokens for s in self.sequences.values()
        )
        most = self.clock + PACKED_WAIT_STEPS * tokens
        while self.sequences:
            self.step()
            assert self.clock <= most
        assert self.pool.num_free == PAGES

    # -- a step as the engine takes it -----------------------------------------------------------
    def put_tables(self, grown: list[Sequence]) -> None:
        self.tables.update((sequence.slot, sequence.pages) for sequence in grown)

    def step(self) -> None:
        planner, everyone = self.planner, list(self.sequences.values())
        widths = (16,) if self.is_ahead else (4, 8)
        plan = planner.plan(everyone, self.paging, widths, is_packed=self.is_ahead)
        self.paging.put_tables(self.put_tables)
        got: list[tuple[Sequence, int]] = []
        for sequence in plan.decode:
            index = sequence.num_launched - 1
            self.written(sequence, [self.newest[sequence.slot]], sequence.num_prompt_tokens + index)
            got.append(
                (
                    sequence,
                    self.chosen(sequence, sequence.num_prompt_tokens + sequence.num_launched),
                )
            )
        chunks = [chunk for each in plan.prefill for chunk in each.chunks]
        for chunk in chunks:
            sequence, end = chunk.key, chunk.start + chunk.length
            if not sequence.is_begun:
                self.tables[sequence.slot] = sequence.pages
            tokens, positions = sequence.prefill_part(slice(chunk.start, end))
            assert positions[0].tolist() == list(range(100 + chunk.start, 100 + end))
            self.written(sequence, tokens.tolist(), chunk.start)
            if ends_prompt(chunk) and not sequence.num_launched:
                got.append((sequence, self.chosen(sequence, end)))
        for sequence, token in got:
            self.newest[sequence.slot] = token
        self.advance(plan.decode, chunks, got)
        due = self.in_flight if self.is_ahead else got
        self.in_flight = got
        for sequence, token in due:
            if not sequence.is_evicted:
                sequence.answer.append(token)
                if len(sequence.answer) == sequence.work.max_tokens:
                    self.evict(sequence)

    def advance(
        self, rows: Many[Sequence], chunks: list[Any], got: list[tuple[Sequence, int]]
    ) -> None:
        sequences = [sequence for sequence, _ in got]
        step = LaunchedStep(chunks, sequences, len(rows), Read(), self.clock)  # type: ignore[arg-type]
        self.clock += 1
        self.planner.note_launched(step)
        self.planner.charge_finished(step, self.clock)
        for chunk in chunks:
            sequence = chunk.key
            sequence.is_begun = True
            sequence.num_prefilled = chunk.start + chunk.length
            first, end = (
                min(n // SIZE, len(sequence.names)) for n in (chunk.start, sequence.num_prefilled)
            )
            self.pool.publish(sequence.job, sequence.names, first, end)
        for sequence in sequences:
            sequence.num_launched += 1

    def evict(self, sequence: Sequence) -> None:
        sequence.is_evicted = True
        del self.sequences[sequence.job]
        self.slots.append(sequence.slot)
        self.planner.holders.remove(sequence.job)
        self.paging.release(sequence)

    # -- what always holds -----------------------------------------------------------------------
    @invariant()
    def answers_are_what_a_large_cache_gives(self) -> None:
        for sequence in self.sequences.values():
            seen = sequence.work.tokens.tolist()
            for token in sequence.answer:
                assert token == answer_to(seen)
                seen.append(token)

    @invariant()
    def no_page_has_two_writers_and_none_is_lost(self) -> None:
        owned = [page for s in self.sequences.values() for page in s.pages]
        assert len(set(owned)) + self.pool.num_free == PAGES
        for sequence in self.sequences.values():
            assert sequence.pages == self.pool.owned(sequence.job)
            own = sequence.pages[len(sequence.names) :]
            assert all(owned.count(page) == 1 for page in own)

    @invariant()
    def the_oldest_is_never_preempted(self) -> None:
        waiting = [s for s in self.sequences.values() if not s.pages]
        assert self.paging.describe()["preempted"] == len(waiting)
        if self.sequences:
            oldest = next(iter(self.sequences.values()))
            assert oldest.pages or oldest is not self.oldest_with_pages
            self.oldest_with_pages = oldest if oldest.pages else None


def answer_to(tokens: list[int]) -> int:
    """A token that depends on all before it."""
    found = 7
    for token in tokens:
        found = (found * 31 + token + 1) % 1009
    return found


class LivesAhead(Lives):
    """A step is launched before the last one was read, and prompts share passes."""

    is_ahead = True


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
LivesAhead.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
test_no_token_is_lost_while_pages_come_and_go = Lives.TestCase
test_no_token_is_lost_one_step_ahead = LivesAhead.TestCase


# -- engines ---------------------------------------------------------------------------------------
@contextmanager
def few_pages(room: Room, num_pages: int) -> Iterator[Paging]:
    """`room` with so few pages of its cache, given out as where bits need not repeat."""
    engine = room.engine
    before, loaded = engine._paging, engine._launcher
    pool = PagePool(num_pages, room.pool.page_tokens)
    holders, limits = engine._planner.holders, replace(room.runner.limits, num_pages=num_pages)
    args = (pool, engine._sequences, holders, limits, engine._metrics)
    paging = Paging(*args, may_preempt=True)
    engine._paging, engine._loaded = paging, replace(loaded, paging=paging)
    try:
        yield paging
    finally:
        for job in engine.active:
            engine.evict(job)
        assert pool.num_free == num_pages
        engine._paging, engine._loaded = before, loaded


def unexpected(room: Room, requests: Many[ChatRequest]) -> list[ChatJob]:
    """Jobs whose answers are longer than was expected of them."""
    works = [room.inputs.prepare(request) for request in requests]
    return [Job(f"{i}", replace(work, expected_tokens=1.0)) for i, work in enumerate(works)]


def run(room: Room, jobs: list[ChatJob]) -> None:
    """All of them, as many at a time as are admitted."""
    waiting = list(jobs)
    while waiting or room.engine.busy:
        while waiting and room.engine.admit(waiting[0]):
            waiting.pop(0)
        room.engine.step(room.engine.active)


@pytest.fixture(scope="module")
def forced(wild: Room) -> tuple[list[ChatRequest], list[list[int]]]:
    """Eight requests with pictures, penalties, seeds and a bias, and their tokens with pages for
    all."""
    bias = Controls(logit_bias=((300, 2.5), (301, -3.0)), min_tokens=20, logprobs=2)
    requests = [
        replace(request, ignore_eos=True, max_tokens=30 + 3 * i, controls=controls)
        for i, (request, controls) in enumerate(zip(EIGHT, [bias, NO_CONTROLS] * 4, strict=True))
    ]
    return requests, [wild.answer(request) for request in requests]


@pytest.mark.parametrize("is_ahead", [False, True], ids=["plain", "ahead"])
def test_preempted_answers_are_those_of_a_large_cache(
    wild: Room, forced: tuple[list[ChatRequest], list[list[int]]], is_ahead: bool
) -> None:
    requests, expected = forced
    jobs = unexpected(wild, requests)
    runner = wild.runner
    before = (runner.is_ahead, runner.packs)
    runner.is_ahead = runner.packs = is_ahead
    series = metrics.preemptions_total.labels("test")
    counted = series._value.get()
    try:
        with few_pages(wild, 28):
            run(wild, jobs)
    finally:
        runner.is_ahead, runner.packs = before
    assert series._value.get() >= counted + 3
    assert [tokens_of(job) for job in jobs] == expected
    for job in jobs:  # nothing is streamed twice
        counts = [delta.completion_tokens for delta in deltas_of(job)]
        assert counts == list(range(1, len(counts) + 1))
        assert job.done
        assert job.error is None


def test_an_answer_that_grows_beyond_what_was_expected_gets_page_after_page(wild: Room) -> None:
    request = chat("and so on", max_tokens=70, ignore_eos=True)
    expected = wild.answer(request)
    (job,) = unexpected(wild, [request])
    with few_pages(wild, 20) as paging:
        assert wild.engine.admit(job)
        held = [len(wild.pool.owned(job))]
        while wild.engine.busy:
            wild.engine.step(wild.engine.active)
            held.append(len(paging.pool.owned(job)))
    assert tokens_of(job) == expected
    assert held[0] == wild.pool.pages_for(job.work.num_prompt_tokens + 1)
    assert max(held) == wild.pool.pages_for(job.work.num_prompt_tokens + 69)
    assert {after - before for before, after in pairwise(held[:-1])} == {0, 1}


def test_a_step_that_raised_after_a_page_was_added_is_repeated(
    wild: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = chat("fails now and then", max_tokens=40, ignore_eos=True)
    expected = wild.answer(request)
    (job,) = unexpected(wild, [request])
    reset, calls = wild.runner.reset_slots, []

    def broken(*args: Any) -> None:
        calls.append(args)
        if len(calls) % 2:
            raise RuntimeError("no table")
        reset(*args)

    monkeypatch.setattr(ChatRunner, "reset_slots", lambda _, *args: broken(*args))
    with few_pages(wild, 20):
        assert wild.engine.admit(job)
        while wild.engine.busy:
            with suppress(RuntimeError):
                wild.engine.step(wild.engine.active)
    assert len(calls) > 4
    assert tokens_of(job) == expected


def test_where_bits_must_repeat_all_pages_are_reserved(wild: Room) -> None:
    (job,) = unexpected(wild, [chat("x", max_tokens=100)])
    assert wild.engine.admit(job)
    assert len(wild.pool.owned(job)) == wild.pool.pages_for(job.work.num_prompt_tokens + 100)
    wild.engine.evict(job)


def test_a_newcomer_finds_pages_beside_one_who_has_given_some_back(wild: Room) -> None:
    many = unexpected(wild, [chat(f"{i}", max_tokens=90, ignore_eos=True) for i in range(6)])
    (other,) = unexpected(wild, [chat("me", max_tokens=12, ignore_eos=True)])
    greedy, other.account = Account("greedy"), Account("other")
    with few_pages(wild, 34) as paging:
        for job in many:
            job.account = greedy
            assert wild.engine.admit(job)
        while not paging.describe()["preempted"]:
            wild.engine.step(wild.engine.active)
        assert paging.describe() == wild.engine.describe()["kv_pages"]
        more = unexpected(wild, [chat("more", max_tokens=4)])[0]
        more.account = greedy
        assert not wild.engine.admit(more)  # its own wait for pages
        assert wild.engine.admit(other)
        run(wild, [])
    assert all(job.done and job.error is None for job in (*many, other))
    lost = [job.spent_cost - job.work.cost_with(90) for job in many]
    assert max(lost) > 0  # what was read again is part of the cost that rates are learned from
    assert other.spent_cost == other.work.cost_with(12)


@pytest.mark.gpu
def test_on_a_gpu_preempted_answers_are_those_of_the_cpu(
    wild_checkpoint: Path, forced: tuple[list[ChatRequest], list[list[int]]]
) -> None:
    requests, expected = forced
    room = Room.open(wild_checkpoint, "auto", "cuda", dtype="float32")
    jobs = unexpected(room, requests)
    with few_pages(room, 11):  # of 64 tokens
        run(room, jobs)
    assert [tokens_of(job) for job in jobs] == expected
    assert any(job.spent_cost > job.work.cost_with(job.work.max_tokens) for job in jobs)
    assert room.engine.describe()["captures_after_ready"] == 0
