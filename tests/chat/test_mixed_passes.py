"""Passes over prompts and rows that decode: the tokens are those of the plain path, whatever the
queue. The kernels run in Triton's interpreter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from predictors.chat.adapters.named import NamedAdapters
from predictors.chat.mixed_passes import MixedPasses
from predictors.chat.pass_timing import measure_passes
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.chat.step_budget import StepBudget
from predictors.settings import QwenVLSettings
from tests.chat.adapters.conftest import CPU
from tests.chat.adapters.peft_files import write_adapter
from tests.chat.gpu_on_cpu import open_fused
from tests.chat.injected_failures import fail_after_call, finish_with_repeats
from tests.chat.mixed_traffic import (
    REQUESTS,
    LaunchedPasses,
    Told,
    alone_in,
    answers_of,
    assert_alike,
    shuffled,
    told_of,
)
from tests.chat.room import Room, tokens_of
from tests.chat.test_not_finite import failed
from tests.chat.test_paging import run, unexpected


@pytest.fixture(scope="module")
def fused(wild_checkpoint: Path) -> Iterator[Room]:
    with pytest.MonkeyPatch.context() as patch:
        yield open_fused(wild_checkpoint, patch)


@pytest.fixture(scope="module")
def alone(wild_checkpoint: Path) -> dict[int, Told]:
    return alone_in(Room.open(wild_checkpoint, max_context=256, max_pixels=112 * 112))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> LaunchedPasses:
    return LaunchedPasses(monkeypatch)


@pytest.mark.parametrize("seed", range(4))
def test_random_queues_get_the_answers_of_the_plain_path(
    fused: Room, alone: dict[int, Told], launched: LaunchedPasses, seed: int
) -> None:
    chance = random.Random(seed)
    assert_alike(answers_of(fused, shuffled(chance), chance), alone)
    assert launched.sizes


def test_a_step_of_one_kind_of_rows_has_no_mixed_pass(
    fused: Room, alone: dict[int, Told], launched: LaunchedPasses
) -> None:
    assert_alike(alone_in(fused), alone)
    assert not launched.sizes


@pytest.mark.parametrize("method", ["launch", "choose_rows", "choose_first"])
@pytest.mark.parametrize("together", [True, False])
def test_a_mixed_step_that_raised_is_repeated_with_the_same_tokens(
    fused: Room,
    alone: dict[int, Told],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    together: bool,
) -> None:
    calls = fail_after_call(monkeypatch, MixedPasses, method, 1)
    jobs = [fused.start(REQUESTS[0])]
    while not tokens_of(jobs[0]):
        fused.engine.step(jobs)
    jobs.append(fused.start(REQUESTS[4]))
    assert finish_with_repeats(fused, jobs, together=together) == 1
    assert len(calls) > together
    assert_alike({0: told_of(jobs[0]), 4: told_of(jobs[1])}, alone)


def test_a_row_that_is_not_finite_fails_alone(
    fused: Room, alone: dict[int, Told], launched: LaunchedPasses
) -> None:
    broken = fused.start(REQUESTS[0])
    while len(tokens_of(broken)) < 2:
        fused.engine.step([broken])
    for cache in fused.runner._passes.caches:
        cache[:, list(fused.engine._sequences[broken].pages)[1:]] = float("nan")
    beside = fused.start(REQUESTS[1])
    fused.finish()
    failed(broken)
    assert launched.sizes
    assert_alike({1: told_of(beside)}, alone)
    assert fused.answer(REQUESTS[0]) == alone[0][0]


def test_preempted_sequences_are_read_again_beside_others(
    wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [replace(REQUESTS[i], max_tokens=20) for i in (0, 3, 4)]
    plain = Room.open(wild_checkpoint, max_context=256)
    expected = [plain.answer(request) for request in requests]
    room = open_fused(wild_checkpoint, monkeypatch, slots=3, kv_tokens=8 * 16)
    launched = LaunchedPasses(monkeypatch)
    jobs = unexpected(room, requests)
    run(room, jobs)
    assert [tokens_of(job) for job in jobs] == expected
    assert any(job.spent_cost > job.work.cost_with(20) for job in jobs)
    assert launched.sizes


def test_with_minimal_warm_up_mixed_passes_come_later(
    wild_checkpoint: Path, alone: dict[int, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = open_fused(wild_checkpoint, monkeypatch, warm="minimal")
    plan, launched = room.engine.plan, LaunchedPasses(monkeypatch)
    assert plan is not None
    assert {"mixed 32", "mixed 16"} <= set(plan.describe()["waiting"])  # type: ignore[call-overload]
    assert_alike(answers_of(room, [0, 1, 3], random.Random(1)), alone)
    assert not launched.sizes
    while not plan.is_over:
        plan.warm_next(is_idle=True)
    assert room.runner.mixed.widths == room.runner.limits.mixed_widths == (16, 32)
    assert_alike(answers_of(room, [0, 1, 3], random.Random(1)), alone)
    assert launched.sizes


def test_without_the_setting_nothing_is_captured_for_it(
    wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = open_fused(wild_checkpoint, monkeypatch, mixed_passes=False)
    names: Any = room.engine.describe()["warm_shapes"]
    assert not [name for name in names if "mixed" in name]
    assert not room.runner.mixed.widths
    assert len(room.runner._passes.logits) == PACK_PROMPTS


def test_steps_in_which_a_row_has_an_adapter_keep_two_passes(
    tmp_path: Path, wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"lora_max_active": 1, "lora_max_rank": 4}
    plain = Room.open(wild_checkpoint, max_context=256, max_pixels=112 * 112, **tables)
    room = open_fused(wild_checkpoint, monkeypatch, **tables)
    linears = {n: s for n, s in room.model.linears.items() if not n.startswith("visual.")}
    named = NamedAdapters("test", room.model.linears, QwenVLSettings(**tables), CPU)
    named.add("words", write_adapter(tmp_path / "words", linears, 1, rank=4, strength=0.4))
    with_adapter = replace(REQUESTS[1], adapters=named.mix([("words", 1.0)]))
    launched = LaunchedPasses(monkeypatch)
    for asked in ([REQUESTS[0], with_adapter], [replace(with_adapter, max_tokens=9), REQUESTS[3]]):
        expected = [plain.answer(request) for request in asked]
        first = room.start(asked[0])
        while not tokens_of(first):
            room.engine.step([first])
        jobs = [first, room.start(asked[1])]
        room.finish()
        assert [tokens_of(job) for job in jobs] == expected
    assert not launched.sizes
    answers_of(room, [0, 3], random.Random(0))


def test_mixed_passes_are_measured_and_a_bound_by_them_changes_no_answer(
    fused: Room, alone: dict[int, Told], launched: LaunchedPasses
) -> None:
    times = measure_passes(fused.runner, fused.pictures, CPU)
    assert list(times.mixed) == [16, 32]
    assert all(seconds > 0 for seconds in times.mixed.values())
    launched.sizes.clear()
    planner = fused.engine._planner
    planner.set_budget(StepBudget(times, 0.1))
    try:
        assert_alike(answers_of(fused, shuffled(random.Random(0)), random.Random(0)), alone)
    finally:
        planner.set_budget(None)
    assert launched.sizes
