"""With `qwen_vl.warm` minimal: what is warm before ready, the order of the rest, answers beside it,
what may be compiled after ready, and passes that fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import metrics
from predictors.chat import pass_timing
from predictors.chat.rehearsal import conversations
from predictors.chat.request import Controls, Sampling
from predictors.errors import ShapeNotWarm
from predictors.serving.engine import StickyDeviceError
from predictors.serving.warm_plan import WarmPlan
from tests.chat.room import GREEDY, Room, chat, png, tokens_of

SAMPLED = Sampling(temperature=1.0, top_p=0.9, frequency_penalty=0.5)
CONTROLS = Controls(logit_bias=((5, 3.0),), min_tokens=2, logprobs=2)
REQUESTS = (
    chat("short", max_tokens=6),
    chat(png(1), "and a picture", max_tokens=5),
    chat("long " * 50, max_tokens=6, sampling=replace(GREEDY, presence_penalty=1.0)),
    chat("drawn", max_tokens=7, sampling=SAMPLED, seed=3),
    chat("biased", max_tokens=6, controls=CONTROLS),
    chat("word " * 25, max_tokens=4),
)
SMALL: dict[str, Any] = {"prefill_chunk": 512, "max_pixels": 56 * 56}
"""Prompts of the start's conversations need the smallest of three widths."""
REQUESTS = tuple(replace(request, ignore_eos=True) for request in REQUESTS)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class LaterRoom:
    """A room with minimal warm-up that is ready; `packs` as on a GPU. Passes named in `broken`
    raise when they are warmed."""

    def __init__(
        self, name: str = "later", *, packs: bool = False, broken: Sequence[str] = (), **given: Any
    ) -> None:
        self.reported: list[tuple[str, int, int]] = []
        self.room = room = Room.make(name=name, warm="minimal", **{"slots": 4, **given})
        engine = room.engine
        engine.conversations = partial(
            conversations, name, room.model, room.inputs, on_device=False
        )
        engine.load()
        room.runner.packs = room.runner.is_ahead = packs
        made = room.runner.warm_shapes

        def shapes() -> list[Any]:
            return [each._replace(run=fail) if each.name in broken else each for each in made()]

        room.runner.warm_shapes = shapes  # type: ignore[method-assign]
        engine.warm(lambda *shape: self.reported.append(shape))

    @property
    def plan(self) -> WarmPlan:
        assert self.room.engine.plan is not None
        return self.room.engine.plan

    @property
    def waiting(self) -> list[str]:
        found: Any = self.plan.describe()["waiting"]
        return list(found)

    def finish(self) -> None:
        while not self.plan.is_over:
            self.plan.warm_next(is_idle=True)


def fail() -> None:
    raise ValueError("this pass is broken")


def pages_of_sequences(room: Room) -> list[torch.Tensor]:
    """Pages and slot state of all running sequences."""
    runner, sequences = room.runner, list(room.engine._sequences.values())
    pages = sorted({page for sequence in sequences for page in sequence.pages})
    slots = [sequence.slot for sequence in sequences]
    state = runner._slots
    of_slots = [state.tables, state.feed, state.seen, state.counts, state.counted]
    return [
        *(cache[:, pages].clone() for cache in runner._passes.caches),
        *(table[slots].clone() for table in of_slots),
    ]


# -- the plan --------------------------------------------------------------------------------------
def test_where_answers_are_fixed_only_widths_of_prompts_are_left() -> None:
    later = LaterRoom("fixed", **SMALL)
    names = [name for name, _, _ in later.reported]
    assert names == ["vision", "choice x4", "choice x1", "prefill 128", "decode x4", "ready"]
    assert later.reported[-1] == ("ready", 5, 7)
    assert later.waiting == ["prefill 512", "prefill 256"]
    later.finish()
    assert later.reported[-1] == ("prefill 256", 7, 7)


def test_a_default_picture_is_promised_with_its_text() -> None:
    usual = LaterRoom("usual", prefill_chunk=512)
    assert usual.waiting == ["prefill 256"]


def test_the_widest_step_is_first_and_what_makes_faster_is_last() -> None:
    later = LaterRoom("soft", deterministic="off", **SMALL | {"prefill_chunk": 64})
    assert later.room.runner.decode_widths == (1,)
    assert later.waiting == ["decode x4", "decode x2", "prefill 32"]
    later.finish()
    assert later.room.runner.decode_widths == (1, 2, 4)
    assert later.room.runner.chunk_widths == later.room.runner.limits.chunk_widths
    assert later.reported[-4:] == [
        ("ready", 5, 8), ("decode x4", 6, 8), ("decode x2", 7, 8), ("prefill 32", 8, 8),
    ]  # fmt: skip


def test_in_the_end_the_passes_are_those_of_a_model_that_warmed_all() -> None:
    given: dict[str, Any] = {"slots": 4, "deterministic": "off", "lora_max_active": 1}
    later, whole = LaterRoom("end", **given), Room.open(**given)
    later.finish()
    names, others = (
        sorted(each.engine.describe()["warm_shapes"])  # type: ignore[call-overload]
        for each in (later.room, whole)
    )
    assert names == others
    assert later.room.runner.decode_widths == whole.runner.decode_widths
    assert later.room.runner.chooser.widths == whole.runner.chooser.widths
    assert whole.engine.plan is None


# -- answers beside it -----------------------------------------------------------------------------
def ask_while_warming(later: LaterRoom, moments: Sequence[int], solo: list[list[int]]) -> None:
    """The requests run together; after each step of `moments` a pass is warmed."""
    room = later.room
    waiting, jobs, number = list(REQUESTS), [], 0
    while waiting or room.engine.busy:
        while waiting:
            job = room.job(waiting[0])
            if not room.engine.admit(job):
                break
            jobs.append(job)
            waiting.pop(0)
        room.engine.step(room.engine.active)
        number += 1
        if number in moments:
            before = pages_of_sequences(room)
            later.plan.warm_next(is_idle=True)
            for now, then in zip(pages_of_sequences(room), before, strict=True):
                assert torch.equal(now, then)
    assert [tokens_of(job) for job in jobs] == solo


@pytest.fixture(scope="module")
def solo(wild: Room) -> list[list[int]]:
    """The answers of a model that warmed all, each alone."""
    return [wild.answer(request) for request in REQUESTS]


KINDS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "any width": {"deterministic": "off"},
    "shared prompts": {"deterministic": "off", "packs": True},
    "shared prefixes": {"deterministic": "off", "prefix_cache": "on"},
}


@settings(max_examples=8)  # each makes an engine
@given(
    kind=st.sampled_from(list(KINDS)),
    moments=st.sets(st.integers(1, 16), min_size=1),
    slots=st.sampled_from([2, 4]),
)
def test_answers_beside_warming_are_those_alone_and_no_page_of_theirs_is_touched(
    solo: list[list[int]], wild_checkpoint: Any, kind: str, moments: set[int], slots: int
) -> None:
    given_ = {"slots": slots, "prefill_chunk": 64, **KINDS[kind]}
    later = LaterRoom("beside", checkpoint=wild_checkpoint, **given_)
    ask_while_warming(later, sorted(moments), solo)


def test_a_prompt_waits_for_the_widths_that_it_is_cut_into() -> None:
    later = LaterRoom("waits", **SMALL)
    later.room.answer(chat("word " * 25, max_tokens=1))
    assert later.waiting == ["prefill 512", "prefill 256"]
    later.room.answer(chat("word " * 70, max_tokens=1))
    assert later.waiting == ["prefill 512"]
    assert later.reported[-1] == ("prefill 256", 6, 7)


def test_no_caller_is_charged_for_a_pass_that_is_warmed_beside_a_step_in_flight() -> None:
    later = LaterRoom("charged", packs=True, deterministic="off")
    planner = later.room.engine._planner
    job = later.room.start(REQUESTS[0])
    later.room.engine.step(later.room.engine.active)
    launched = later.room.engine._in_flight
    assert launched is not None
    later.plan.warm_next(is_idle=True)
    assert planner._done_at > launched.started_at
    later.room.finish()
    assert len(tokens_of(job)) == 6


# -- times of passes -------------------------------------------------------------------------------
PACKED: dict[str, Any] = {"packs": True, "deterministic": "off", "prefill_steps": 1.4}


def test_passes_are_measured_once_all_of_them_are_warm() -> None:
    later = LaterRoom("timed", **PACKED)
    planner = later.room.engine._planner
    assert later.room.engine.describe()["step_budget"] is None
    later.finish()
    budget: Any = later.room.engine.describe()["step_budget"]
    assert list(budget["decode_ms"]) == ["1", "2", "4"]
    assert planner._done_at > 0  # no caller pays for it
    assert len(later.room.answer(REQUESTS[0])) == 6


def test_a_start_that_leaves_no_pass_ends_as_one_that_warms_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    later = LaterRoom("whole", prefill_chunk=256, prefill_steps=1.4)
    assert later.waiting == []
    assert "whole: qwen_vl.prefill_steps 1.4 has no effect: prompts share passes" in caplog.text


def test_a_pass_that_failed_leaves_no_bound_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    later = LaterRoom("unbound", broken=["decode x4"], **PACKED)
    later.finish()
    assert later.room.engine.describe()["step_budget"] is None
    told = "unbound: qwen_vl.prefill_steps 1.4 has no effect until the next start: decode x4 could"
    assert told in caplog.text


def test_no_memory_to_measure_passes_beside_answers_is_told_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    later = LaterRoom("cramped", **PACKED)

    def cramped(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory beside running answers")

    monkeypatch.setattr(pass_timing, "measure_passes", cramped)
    later.finish()
    assert later.room.engine.describe()["step_budget"] is None
    assert "cramped: qwen_vl.prefill_steps 1.4 has no effect until the next start" in caplog.text
    assert later.reported[-1][1:] == later.plan.counts
    assert len(later.room.answer(REQUESTS[0])) == 6


# -- compilations ----------------------------------------------------------------------------------
@pytest.mark.parametrize("deterministic", ["on", "off"])
def test_planned_passes_are_compiled_uncounted_and_traffic_compiles_nothing_more(
    deterministic: str, fresh_dynamo: None
) -> None:
    name = f"planned {deterministic}"
    given_: dict[str, Any] = {"slots": 2, "prefill_chunk": 64, "deterministic": deterministic}
    later = LaterRoom(name, compile="aot_eager", **given_)
    engine, compiled = later.room.engine, metrics.start_compilations.labels(name, "compiled")
    first = compiled._value.get()
    assert first > 0
    cold = later.room.answers(REQUESTS)
    later.finish()
    assert later.room.answers(REQUESTS) == cold
    assert engine.guard.check() == 0
    assert engine.describe()["captures_after_ready"] == 0
    assert metrics.recompilations_total.labels(name)._value.get() == 0
    assert compiled._value.get() > first
    assert metrics.planned_warm_ups_left.labels(name)._value.get() == 0
    later.room.runner.decode_widths = (3,)
    later.room.answer(REQUESTS[0])
    assert engine.guard.check() > 0  # all else is counted


# -- failures --------------------------------------------------------------------------------------
def test_a_width_that_a_prompt_needs_is_refused_by_name_and_others_are_served() -> None:
    later = LaterRoom("fails", broken=["prefill 256"], **SMALL)
    engine, refused = later.room.engine, later.room.job(chat("word " * 70))
    with pytest.raises(ShapeNotWarm, match="fails does not serve prefill 256 until it is"):
        engine.admit(refused)
    with pytest.raises(ShapeNotWarm):
        engine.validate(refused.work)
    assert not engine.busy
    later.room.answer(chat("short", max_tokens=2))
    later.room.answer(chat("word " * 150, max_tokens=2))
    assert later.plan.describe()["failed"] == ["prefill 256"]


def test_a_width_that_only_makes_faster_is_left_out(solo: list[list[int]]) -> None:
    later = LaterRoom("slower", broken=["decode x4"], deterministic="off")
    whole = Room.open(slots=4)
    later.finish()
    assert later.plan.describe()["failed"] == ["decode x4"]
    assert later.room.runner.decode_widths == (1, 2)
    assert later.room.answers(REQUESTS) == [whole.answer(request) for request in REQUESTS]


def test_a_default_pass_that_fails_is_a_failed_start() -> None:
    with pytest.raises(ValueError, match="this pass is broken"):
        LaterRoom("start", broken=["decode x4"])


def test_a_lost_device_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    later = LaterRoom("lost", deterministic="off")

    def lose(*_: object) -> None:
        raise torch.AcceleratorError("the context is lost")

    monkeypatch.setattr(later.room.runner, "decode", lose)
    with pytest.raises(StickyDeviceError):
        later.plan.warm_next(is_idle=True)
    assert later.room.runner.decode_widths == (1,)
