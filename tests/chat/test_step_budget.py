"""The rows of prompts that a step may read, from tables of pass times given by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors import metrics
from predictors.chat import engine
from predictors.chat.limits import aligned, packed_widths
from predictors.chat.planning import PACKED_WAIT_STEPS
from predictors.chat.request import ChatRequest
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import SequenceProgress, StepCosts, StepPlan, plan_packed
from predictors.chat.step_budget import PassTimes, StepBudget
from predictors.serving.accounts import Account
from tests.chat.room import Room, chat, png, tokens_of
from tests.timed_passes import TimedPasses

WIDTHS = packed_widths(1536)
TIMES = PassTimes.of(
    decode={1: 2e-3, 64: 3e-3},
    prompt={width: 1e-5 * max(256, width) for width in WIDTHS},
    vision={256: 2.5e-3, 1369: 16e-3},
)
SMALL = PassTimes.of(
    decode={1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0},
    prompt={16: 1.0, 32: 2.0, 64: 4.0},
    vision={1: 0.5, 64: 32.0},
)
"""Each 16 rows of a prompt take a decode step, and each two tokens of a picture another."""
TALK = chat("tell me all", max_tokens=60, ignore_eos=True)


def read(
    found: list[SequenceProgress[str]], budget: StepBudget, num_rows: int = 64
) -> StepPlan[str]:
    return plan_packed(found, WIDTHS, 512, bound=budget.beside(num_rows))


def rows_of(plan: StepPlan[str]) -> dict[str, int]:
    return {chunk.key: chunk.length for each in plan.prefill for chunk in each.chunks}


# -- widths --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("steps", "most_s"), [(1.0, 3e-3), (1.4, 4.2e-3), (2.0, 6e-3), (4.0, 12e-3), (9.0, 27e-3)]
)
def test_a_pass_takes_at_most_so_many_decode_steps(steps: float, most_s: float) -> None:
    plan = read([SequenceProgress("long", 0, 5000)], StepBudget(TIMES, steps))
    width = plan.prefill[0].width
    assert TIMES.prompt[width] <= most_s
    wider = [w for w in WIDTHS if w > width]
    assert not wider or TIMES.prompt[wider[0]] > most_s


def test_fewer_rows_that_decode_leave_less_for_prompts() -> None:
    budget = StepBudget(TIMES, 2.0)
    assert budget.beside(1).rows < budget.beside(32).rows < budget.beside(64).rows
    assert budget.beside(200).most_s == pytest.approx(2.0 * 3e-3 * 200 / 64)


def test_the_widest_pass_that_costs_one_reading_of_the_weights_is_always_offered() -> None:
    free = TIMES.free_rows
    assert TIMES.prompt[free] <= 1.25 * TIMES.prompt[16] < TIMES.prompt[WIDTHS[-1]]
    assert StepBudget(TIMES, 0.01).beside(1).rows == free
    assert rows_of(read([SequenceProgress("long", 0, 5000)], StepBudget(TIMES, 0.01))) == {
        "long": free
    }


def test_a_step_encodes_one_picture_and_its_tower_takes_no_rows() -> None:
    budget = StepBudget(TIMES, 1.4)
    picture = SequenceProgress("picture", 0, 1434, ((15, 1369),))
    others = [SequenceProgress("text", 0, 100), SequenceProgress("small", 0, 70, ((5, 64),))]
    rows = budget.beside(64).rows
    assert rows_of(read([picture, *others], budget)) == {"picture": rows}
    # the third ends before its picture, which waits for a step of its own
    small = replace(others[1], key="first")
    found = rows_of(read([small, *others], budget))
    assert found == {"first": 70, "text": 100, "small": 5}
    free = plan_packed([small, *others], WIDTHS, 512)
    assert rows_of(free) == {"first": 70, "text": 100, "small": 70}


def test_times_are_made_to_grow_with_the_width() -> None:
    """A width that was measured while the machine was busy does not hide wider ones."""
    times = PassTimes.of({1: 1.0}, {64: 3.0, 16: 9.0, 32: 2.0}, {})
    assert list(times.prompt.items()) == [(16, 2.0), (32, 2.0), (64, 3.0)]
    assert times.prompt_s(1) == times.prompt_s(32) == 2.0
    assert times.prompt_s(33) == 3.0
    assert times.prompt_s(128) == 6.0
    assert times.vision_s(0) == 0.0


def test_a_mixed_pass_counts_what_it_takes_beyond_the_decode_step() -> None:
    """A step of 64 rows takes 3 ms, a pass 2.56 at least, both together 3.36 at least."""
    mixed = {width: TIMES.prompt_s(width + 64) + 0.8e-3 for width in WIDTHS}
    times = replace(TIMES, mixed=mixed)
    assert times.prompt_s(64) == TIMES.prompt_s(64)  # where nothing decodes
    assert times.prompt_s(64, 64) == pytest.approx(0.36e-3)
    assert times.prompt_s(64, 1) == pytest.approx(1.36e-3)
    budget, apart = StepBudget(times, 1.4), StepBudget(TIMES, 1.4)
    width = budget.beside(64).rows
    assert mixed[width] - 3e-3 <= 4.2e-3
    assert width > apart.beside(64).rows
    assert apart.prompt_s(64, 256, 64) == pytest.approx(2.56e-3 + 2.5e-3)
    assert budget.prompt_s(64, 256, 64) == pytest.approx(0.36e-3 + 2.5e-3)
    assert budget.prompt_s(64, 256, 0) == apart.prompt_s(64, 256, 0)
    assert mixed[times.free_rows] <= 1.25 * 3.36e-3
    assert StepBudget(times, 0.01).beside(64).rows == times.free_rows
    assert budget.describe()["mixed_ms"]["16"] == 3.36  # type: ignore[index]


# -- all prompts end -----------------------------------------------------------------------------
seconds = st.floats(1e-4, 10.0)
tables = st.builds(
    PassTimes.of,
    st.fixed_dictionaries(dict.fromkeys((1, 8, 64), seconds)),
    st.fixed_dictionaries(dict.fromkeys(WIDTHS, seconds)),
    st.fixed_dictionaries(dict.fromkeys((64, 256, 1369), seconds)),
    st.none() | st.fixed_dictionaries(dict.fromkeys(WIDTHS, seconds)),
)


@st.composite
def queues(draw: st.DrawFn) -> list[SequenceProgress[int]]:
    """Prompts, some with pictures."""
    found = []
    for key in range(draw(st.integers(1, 40))):
        total = draw(st.integers(1, 3000))
        starts = draw(st.sets(st.integers(0, total - 1), max_size=3))
        new = tuple((start, draw(st.integers(1, 1500))) for start in sorted(starts))
        found.append(SequenceProgress(key, 0, total, new))
    return found


@given(tables, queues(), st.floats(0.01, 10.0), st.integers(1, 64))
def test_every_prompt_ends_within_a_bound_of_steps(
    times: PassTimes, found: list[SequenceProgress[int]], steps: float, num_rows: int
) -> None:
    """Each step reads what one reading of the weights allows, or ends a prompt, or begins a
    picture."""
    bound = StepBudget(times, steps).beside(num_rows)
    free = times.free_rows
    most = sum(-(-s.total // free) + 1 + 2 * len(s.new_pictures) for s in found)
    done, left, taken = {s.key: 0 for s in found}, list(found), 0
    while left:
        plan = plan_packed(left, WIDTHS, 512, bound=bound)
        (read_now,) = plan.prefill
        rows = sum(aligned(chunk.length) for chunk in read_now.chunks)
        assert rows <= read_now.width <= bound.rows
        assert read_now.chunks[0].key == left[0].key  # the first one always gets on
        for chunk in read_now.chunks:
            done[chunk.key] += chunk.length
        left = [
            replace(
                s,
                done=done[s.key],
                new_pictures=tuple(n for n in s.new_pictures if n[0] >= done[s.key]),
            )
            for s in left
            if done[s.key] < s.total
        ]
        taken += 1
        assert taken <= most


@pytest.fixture
def ahead(wild_checkpoint: Path) -> Room:
    """As on a GPU, eight slots, with times by hand."""
    room = Room.open_ahead(wild_checkpoint, slots=8, max_context=256)
    room.engine._planner.set_budget(StepBudget(SMALL, 1.0))
    return room


@pytest.mark.parametrize("callers", [1, 2])
def test_prompts_go_on_beside_a_full_engine_that_holds_them_for_more(
    ahead: Room, monkeypatch: pytest.MonkeyPatch, callers: int
) -> None:
    """Jobs wait for slots, so prompts are held to share passes; a cut one is not held again."""
    TimedPasses(monkeypatch, ChatRunner, {"decode": 1.0, "prefill": 1.0}, engine)
    monkeypatch.setattr(ahead.engine._planner, "_done_at", 0.0)
    accounts = [Account(f"{i}") for i in range(callers)]
    for i in range(6):
        job = ahead.job(replace(TALK, max_tokens=150, seed=i))
        job.account = accounts[i % callers]
        job.account.waiting = 3
        assert ahead.engine.admit(job)
    while any(not tokens_of(job) for job in ahead.engine.active):
        ahead.engine.step(ahead.engine.active)
    late = ahead.job(chat("z" * 100, max_tokens=1))
    late.account = accounts[0]
    assert ahead.engine.admit(late)
    passes = -(-late.work.num_prompt_tokens // 16)
    taken = 0
    while not late.done:
        ahead.engine.step(ahead.engine.active)
        taken += 1
    # beside another caller decoding gets as long as each pass took
    assert passes < taken <= PACKED_WAIT_STEPS + 2 + passes * (1 if callers == 1 else 3)


# -- the same answers ----------------------------------------------------------------------------
REQUESTS = [
    TALK,
    chat("x" * 150, max_tokens=20, ignore_eos=True),
    chat(png(1), "and this", max_tokens=20, ignore_eos=True),
    chat("y" * 90, max_tokens=20, ignore_eos=True),
    chat(png(2, 96, 64), "then this", png(3), max_tokens=20, ignore_eos=True),
]


def staggered(room: Room, requests: list[ChatRequest]) -> list[list[int]]:
    """The tokens of requests that come one by one, each while the earlier ones decode."""
    jobs = []
    for request in requests:
        jobs.append(room.start(request))
        while not tokens_of(jobs[0]):
            room.engine.step(room.engine.active)
    room.finish()
    return [tokens_of(job) for job in jobs]


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "one by one"])
def test_tokens_are_the_same_with_and_without_a_bound(
    wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    opened = Room.open_ahead if is_packed else Room.open
    room = opened(wild_checkpoint, slots=8, max_context=256, embedding_cache_bytes=0)
    passes: list[tuple[int, ...]] = []
    prefill = ChatRunner.prefill

    def counted(self: ChatRunner, parts: list[object], width: int) -> object:
        passes.append((width, *(len(part.tokens) for part in parts)))  # type: ignore[attr-defined]
        return prefill(self, parts, width)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatRunner, "prefill", counted)
    alone = [room.answer(request) for request in REQUESTS]
    passes.clear()
    expected = staggered(room, REQUESTS)
    before = passes.copy()
    passes.clear()
    room.engine._planner.set_budget(StepBudget(SMALL, 2.0))
    rows = metrics.prefill_size.labels("test")._sum
    counted_before = rows.get()
    assert staggered(room, REQUESTS) == expected == alone
    assert rows.get() - counted_before == sum(width for width, *_ in passes)
    if is_packed:
        beside = passes[1:]  # nothing decodes beside the first
        assert max(sum(map(aligned, lengths)) for _, *lengths in beside) == 32
        assert max(sum(map(aligned, lengths)) for _, *lengths in before[1:]) > 32
    else:
        assert passes == before


def test_without_the_setting_nothing_is_measured_and_costs_are_learned_from_nothing(
    room: Room,
) -> None:
    planner = room.engine._planner
    assert planner._budget is None
    assert room.engine.describe()["step_budget"] is None
    assert StepCosts().expected(64, 1000) == (0.0, 0.0)


# -- who pays ------------------------------------------------------------------------------------
def test_costs_start_with_the_measured_times() -> None:
    costs = StepCosts(TIMES)
    assert costs.expected(64, 0.004) == (3e-3, 0.004)
    assert costs.decode_s(1) == 2e-3
    decode_s, prompt_s = costs.split(64, 0.006, 9e-3)
    assert decode_s == pytest.approx(3e-3)
    assert prompt_s == pytest.approx(6e-3)


def test_the_seconds_of_all_steps_are_charged_once_with_a_budget(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = TimedPasses(monkeypatch, ChatRunner, {"decode": 2.0, "prefill": 5.0}, engine)
    monkeypatch.setattr(ahead.engine._planner, "_done_at", 0.0)
    accounts = [Account(name) for name in ("reader", "looker", "talker")]
    jobs = [ahead.job(request) for request in REQUESTS]
    for i, job in enumerate(jobs):
        job.account = accounts[i % 3]
        assert ahead.engine.admit(job)
    ahead.finish()
    assert sum(job.used_s for job in jobs) == pytest.approx(passes.busy_s)
    assert sum(account.used_s for account in accounts) == pytest.approx(passes.busy_s)
    assert all(job.used_s > 0 for job in jobs)
