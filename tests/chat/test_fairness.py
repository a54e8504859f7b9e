"""Callers share the steps of a chat engine, and nothing of it shows in an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat import engine
from predictors.chat.answer_lengths import AnswerLengths
from predictors.chat.planning import PACKED_WAIT_STEPS
from predictors.chat.request import ChatRequest, Sampling
from predictors.chat.rows import DecodeRows
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import (
    CHEAP_ROWS,
    PromptWait,
    SequenceProgress,
    StepCosts,
    plan_packed,
    plan_single,
)
from predictors.chat.sequence import ChatJob
from predictors.serving.accounts import Account
from tests.chat.room import Room, chat, png, tokens_of
from tests.timed_passes import TimedPasses

LONG = chat("tell me all", max_tokens=40, ignore_eos=True)
MINE = chat(
    "a question", max_tokens=12, ignore_eos=True, seed=5, sampling=Sampling(temperature=1.0)
)


class Callers:
    """The accounts of a room's callers."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._accounts: dict[str, Account] = {}

    def job(self, caller: str, request: ChatRequest) -> ChatJob:
        job = self.room.job(request)
        job.account = self._accounts.setdefault(caller, Account(caller))
        return job

    def start(self, caller: str, request: ChatRequest) -> ChatJob:
        job = self.job(caller, request)
        assert self.room.engine.admit(job)
        return job

    def fill(self, caller: str, request: ChatRequest) -> list[ChatJob]:
        """Admit jobs of a greedy caller until none fits."""
        jobs: list[ChatJob] = []
        while self.room.engine.admit(job := self.job(caller, replace(request, seed=len(jobs)))):
            jobs.append(job)
        return jobs

    def steps_to_end(self, job: ChatJob, refill: Callable[[], object] = lambda: None) -> int:
        """Steps until the job is done; `refill` after each."""
        steps = 0
        while not job.done:
            self.room.engine.step(self.room.engine.active)
            refill()
            steps += 1
        return steps

    def end(self) -> None:
        for job in self.room.engine.active:
            self.room.engine.evict(job)


def use_scripted_clock(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes a second, whatever it reads: by the machine's clock a busy moment would make
    some passes look dear."""
    TimedPasses(monkeypatch, ChatRunner, {"decode": 1.0, "prefill": 1.0}, engine)
    monkeypatch.setattr(room.engine._planner, "costs", StepCosts())
    monkeypatch.setattr(room.engine._planner, "_done_at", 0.0)


@pytest.fixture(params=["plain", "ahead"], scope="module")
def shared(request: pytest.FixtureRequest) -> Room:
    """A deterministic room of four slots, and one that launches ahead as a GPU does."""
    checkpoint = request.getfixturevalue("wild_checkpoint")
    opened = Room.open if request.param == "plain" else Room.open_ahead
    return opened(checkpoint, slots=4, max_context=256)


@pytest.fixture
def callers(shared: Room, monkeypatch: pytest.MonkeyPatch) -> Callers:
    use_scripted_clock(shared, monkeypatch)
    found = Callers(shared)
    found.end()
    return found


# -- slots and rows ------------------------------------------------------------------------------
def test_an_answer_beside_a_greedy_caller_has_the_tokens_and_the_steps_of_alone(
    callers: Callers,
) -> None:
    room = callers.room
    requests = [MINE, chat(png(3), "and this", max_tokens=9, ignore_eos=True)]
    alone = []
    for request in requests:
        job = room.start(request)
        alone.append((callers.steps_to_end(job), tokens_of(job)))
    callers.fill("greedy", LONG)
    for _ in range(6):
        room.engine.step(room.engine.active)
    for request, (steps, tokens) in zip(requests, alone, strict=True):
        job = callers.start("other", request)  # all slots are taken
        taken = callers.steps_to_end(job, lambda: callers.fill("greedy", LONG))
        assert tokens_of(job) == tokens
        assert taken <= steps + 1 + PACKED_WAIT_STEPS * room.runner.packs
    assert room.engine.describe()["recompilations_after_ready"] == 0
    assert room.engine.describe()["captures_after_ready"] == 0


def test_a_full_step_has_the_rows_of_before_and_each_sequence_its_turn(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = callers.room
    widths: list[int] = []
    decode = ChatRunner.decode

    def counted(self: ChatRunner, rows: DecodeRows) -> object:
        widths.append(len(rows))
        return decode(self, rows)

    monkeypatch.setattr(ChatRunner, "decode", counted)
    alone = room.answer(LONG)
    jobs = callers.fill("first", replace(LONG, seed=0))
    assert len(jobs) == 4
    jobs += [callers.start("second", LONG) for _ in range(2)]
    assert not room.engine.admit(callers.job("first", LONG))
    assert not room.engine.admit(callers.job("third", LONG))  # no slot is left
    while not all(tokens_of(job) for job in jobs):  # until all prompts are read
        room.engine.step(room.engine.active)
    before = [len(tokens_of(job)) for job in jobs]
    for _ in range(16):
        room.engine.step(room.engine.active)
    made = [len(tokens_of(job)) - b for job, b in zip(jobs, before, strict=True)]
    assert max(widths) == 4
    assert max(made[:4]) - min(made[:4]) <= 2  # those of one caller take turns
    assert min(made[4:]) >= 14  # and two rows each go to either caller
    assert sum(made) >= 4 * 15  # no row stays empty
    room.finish()
    assert tokens_of(jobs[0]) == tokens_of(jobs[4]) == alone


def test_sixteen_long_answers_of_one_caller_leave_another_its_slot(callers: Callers) -> None:
    waiting = [callers.job("n", replace(LONG, seed=i)) for i in range(16)]

    def refill() -> None:
        while waiting and callers.room.engine.admit(waiting[0]):
            waiting.pop(0)

    refill()
    assert len(waiting) == 12
    alone = callers.steps_to_end(callers.start("other", MINE), refill)
    assert alone <= 16 + PACKED_WAIT_STEPS
    while callers.room.engine.busy:
        callers.room.engine.step(callers.room.engine.active)
        refill()
    assert not waiting


def test_pages_are_kept_for_a_caller_who_comes_later() -> None:
    room = Room.open(slots=8, max_context=256, kv_tokens=64 * 16, page_tokens=16)
    callers = Callers(room)
    greedy = callers.fill("greedy", chat("x", max_tokens=110))
    kept = room.pool.num_free
    assert kept >= 4
    assert len(greedy) < 8
    assert callers.start("other", chat("x", max_tokens=20)).account.name == "other"
    room.finish()
    whole = chat("x", max_tokens=200)
    assert room.engine.admit(callers.job("greedy", whole))  # alone one may have all
    callers.end()


# -- prompts -------------------------------------------------------------------------------------
def test_a_queue_of_prompts_delays_another_callers_first_token_by_one_pass_at_most(
    callers: Callers,
) -> None:
    room, long = callers.room, chat("y" * 180, max_tokens=2, ignore_eos=True)
    job = room.start(MINE)
    alone = 0
    while not tokens_of(job):
        room.engine.step([job])
        alone += 1
    callers.end()
    callers.fill("greedy", long)
    for _ in range(5):
        room.engine.step(room.engine.active)
        callers.fill("greedy", long)
    job = callers.start("other", MINE)
    steps = 0
    while not tokens_of(job):
        room.engine.step(room.engine.active)
        callers.fill("greedy", long)
        steps += 1
    assert steps <= alone + 1
    callers.end()


def test_guests_share_a_pass_only_as_far_as_it_stays_short() -> None:
    own = [SequenceProgress("mine", 0, 40)]
    others = [SequenceProgress(i, 0, 200) for i in range(5)]
    packed = plan_packed(own, (16, 64, 256, 1536), 512, others, 0.5).prefill[0]
    assert packed.chunks[0].key == "mine"
    assert packed.width == CHEAP_ROWS
    alone = plan_packed(own, (16, 64, 256, 1536), 512).prefill[0]
    assert packed.chunks[0] == alone.chunks[0]
    single = plan_single(own, (64, 128, 256), [SequenceProgress(i, 0, 60) for i in range(5)], 0.5)
    assert [read.chunks[0].key for read in single.prefill] == ["mine", 0]
    pictures = [SequenceProgress("two", 0, 100, ((10, 64),))]
    chunks = plan_packed(own, (16, 64, 256), 512, pictures, 0.5).prefill[0].chunks
    assert [(chunk.key, chunk.length) for chunk in chunks] == [("mine", 40), ("two", 10)]


def test_prompts_wait_until_decoding_has_taken_as_long_as_they_did() -> None:
    wait = PromptWait()
    assert wait.is_over
    wait.start(0.05, 0)
    waited = 0
    while not wait.is_over:
        wait.note_decoding(0.01)
        waited += 1
    assert waited == 5
    wait.start(0.001, 8)
    for _ in range(8):
        assert not wait.is_over
        wait.note_decoding(0.01)
    assert wait.is_over


@pytest.mark.parametrize("waiting", [0, 3])
def test_where_jobs_wait_for_slots_a_few_prompts_wait_for_more(
    wild_checkpoint: Path, waiting: int
) -> None:
    """With jobs waiting, prompts that come one by one share passes; else each is read at once."""
    room = Room.open_ahead(wild_checkpoint, slots=8, max_context=256)
    callers = Callers(room)
    for _ in range(6):
        callers.start("only", LONG).account.waiting = waiting
    for _ in range(10):
        room.engine.step(room.engine.active)
    first = callers.start("only", replace(MINE, max_tokens=1))
    room.engine.step(room.engine.active)  # a pass after some quiet steps is not held back
    second = callers.start("only", replace(MINE, max_tokens=1))
    taken = callers.steps_to_end(second)
    assert first.done
    assert taken == (2 if not waiting else 2 + PACKED_WAIT_STEPS)
    callers.end()


# -- seconds -------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 3000), st.floats(0, 10)), max_size=30))
def test_a_step_is_charged_once(steps: list[tuple[int, int, float]]) -> None:
    costs = StepCosts()
    for rows, tokens, seconds in steps:
        decode_s, prompt_s = costs.split(rows, tokens, seconds)
        assert decode_s >= 0
        assert prompt_s >= 0
        assert decode_s + prompt_s == pytest.approx(seconds)
        assert not decode_s or rows or not tokens
        assert not prompt_s or tokens


def test_what_prompts_and_rows_take_is_learned_from_mixed_steps() -> None:
    costs = StepCosts()
    for _ in range(100):
        costs.split(8, 0, 0.01)
        costs.split(8, 100, 0.03)
    decode_s, prompt_s = costs.split(8, 100, 0.03)
    assert decode_s == pytest.approx(0.01, rel=0.01)
    assert prompt_s == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("row_s", [0.0, 1.0], ids=["flat", "by rows"])
def test_an_answer_beside_others_takes_twice_its_own_seconds_at_most(
    callers: Callers, monkeypatch: pytest.MonkeyPatch, row_s: float
) -> None:
    """Where a row costs a pass' time, four rows of the greedy caller would make it five times."""
    room, mine = callers.room, replace(MINE, max_tokens=60)
    monkeypatch.setattr(room.engine._planner, "costs", StepCosts())
    passes = TimedPasses(monkeypatch, ChatRunner, {"decode": 0.5}, engine, row_s)
    monkeypatch.setattr(room.engine._planner, "_done_at", 0.0)
    alone = callers.start("other", mine)
    callers.steps_to_end(alone)
    alone_s = passes.busy_s
    callers.fill("greedy", LONG)
    for _ in range(6):
        room.engine.step(room.engine.active)
    began_s = passes.busy_s
    beside = callers.start("other", mine)
    callers.steps_to_end(beside, lambda: callers.fill("greedy", LONG))
    full_step_s = 0.5 + 4 * row_s
    assert tokens_of(beside) == tokens_of(alone)
    assert passes.busy_s - began_s <= 2 * alone_s + (2 + PACKED_WAIT_STEPS) * full_step_s


def test_seconds_between_two_numbers_of_rows_are_on_the_line_between_them() -> None:
    costs = StepCosts()
    assert costs.decode_s(3) == 0.0
    costs.split(2, 0, 0.02)
    assert [costs.decode_s(rows) for rows in (0, 1, 2, 64)] == [0.0, 0.02, 0.02, 0.02]
    costs.split(6, 0, 0.06)
    assert [costs.decode_s(rows) for rows in (1, 3, 5, 9)] == pytest.approx(
        [0.02, 0.03, 0.05, 0.06]
    )


@pytest.mark.parametrize("is_ahead", [False, True], ids=["plain", "ahead"])
def test_the_seconds_of_all_steps_are_charged_once(
    room: Room, monkeypatch: pytest.MonkeyPatch, is_ahead: bool
) -> None:
    """Each pass takes scripted seconds. Three callers with pictures, texts and long answers."""
    monkeypatch.setattr(room.runner, "is_ahead", is_ahead)
    monkeypatch.setattr(room.runner, "packs", is_ahead)
    passes = TimedPasses(monkeypatch, ChatRunner, {"decode": 2.0, "prefill": 5.0}, engine)
    monkeypatch.setattr(room.engine._planner, "_done_at", 0.0)
    callers = Callers(room)
    waiting = [
        callers.job("reader", chat("z" * 200, max_tokens=2, ignore_eos=True)),
        callers.job("looker", chat(png(1), "and this", max_tokens=5, ignore_eos=True)),
        *(callers.job("talker", replace(LONG, seed=i)) for i in range(room.engine.slots)),
    ]
    jobs = list(waiting)
    while waiting or room.engine.busy:
        while waiting and room.engine.admit(waiting[0]):
            waiting.pop(0)
        room.engine.step(room.engine.active)
    assert passes.busy_s >= 2.0 * LONG.max_tokens
    assert sum(job.used_s for job in jobs) == pytest.approx(passes.busy_s)
    accounts = {job.account for job in jobs}
    assert sum(account.used_s for account in accounts) == pytest.approx(passes.busy_s)
    assert all(job.used_s > 0 for job in jobs)


# -- costs ---------------------------------------------------------------------------------------
def test_the_length_of_answers_is_learned_by_what_was_asked_for() -> None:
    lengths = AnswerLengths()
    assert lengths.expected(16) == 16
    assert lengths.expected(30_000) == 256
    for _ in range(100):
        lengths.observe(512, 20)
        lengths.observe(30_000, 700)
    assert lengths.expected(512) == pytest.approx(20)
    assert lengths.expected(30_000) == pytest.approx(700)
    assert lengths.expected(10) == 10


@pytest.mark.parametrize(
    ("asked", "least"),
    [
        ({"max_tokens": 400}, 1),
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 50, "ignore_eos": True}, 50),
        ({"max_tokens": 50, "ignore_eos": True, "stop": ("x",)}, 1),
    ],
    ids=["may end early", "one token", "full length", "stop string"],
)
def test_no_answers_of_others_make_a_request_seem_too_late(
    room: Room, asked: dict[str, Any], least: int
) -> None:
    inputs = room.inputs
    before, request = inputs.lengths, chat("hi", **asked)
    found = []
    try:
        for made in (1, 30_000):
            inputs.lengths = AnswerLengths()
            for _ in range(100):
                inputs.lengths.observe(request.max_tokens or 1, made)
            found += [inputs.least_cost(request), inputs.prepare(request).least_cost]
    finally:
        inputs.lengths = before
    assert found == [pytest.approx(least, abs=0.9)] * 4


def test_a_wrong_guess_of_a_length_does_not_change_the_rate(callers: Callers) -> None:
    """Callers who leave early, and then one with long answers, make no other's estimate worse."""
    costs = []
    for guess in (12.0, 0.001, 9_000.0):
        job = callers.job("one", chat("hi", max_tokens=12, ignore_eos=True))
        job.work = replace(job.work, expected_tokens=guess)
        expected = job.cost = job.work.cost
        assert callers.room.engine.admit(job)
        callers.steps_to_end(job)
        callers.end()
        assert job.cost == expected  # sums of waiting and open work take off what was added
        costs.append(job.spent_cost)
    assert costs == [pytest.approx(12, abs=0.9)] * 3


def test_a_requests_cost_is_near_its_works_and_grows_with_what_it_asks(room: Room) -> None:
    requests = [
        chat("hi", max_tokens=4, ignore_eos=True),
        chat("hi", max_tokens=64, ignore_eos=True),
        chat("long " * 60, max_tokens=64, ignore_eos=True),
        chat(png(1, 300, 300), "long " * 60, max_tokens=64, ignore_eos=True),
    ]
    costs = [room.inputs.cost(request) for request in requests]
    assert all(less < more for less, more in pairwise(costs))
    works = [room.inputs.prepare(request) for request in requests]
    for cost, work in zip(costs[:3], works, strict=False):
        assert cost == pytest.approx(work.cost, rel=0.35, abs=2)
    assert works[3].cost - 2 <= costs[3] <= works[3].cost + 512 / 32  # a file may be packed closely
