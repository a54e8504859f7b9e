"""The seconds of warm passes, as an engine measures them at its start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from predictors.chat import pass_timing
from predictors.chat.engine import ChatEngine
from predictors.chat.pass_timing import PASS_S, REPLAYS, measure_passes, measured_budget
from predictors.chat.step_budget import PassTimes
from predictors.compute.device import pacing
from predictors.compute.device.placement import Placement, place
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.settings import ComputeSettings, QwenVLSettings
from tests.chat.room import CHECKPOINT, Room, chat, png

FEW = {"slots": 4, "max_context": 256, "max_pixels": 112 * 112, "deterministic": "off"}


@pytest.fixture(scope="module")
def plain() -> Placement:
    return place(ComputeSettings(device="cpu", compile="off"))


def ready(steps: float, placement: Placement, *, packs: bool) -> ChatEngine:
    """An engine that is loaded and warm. `packs`: prompts share passes, as on a GPU."""
    settings = QwenVLSettings(**FEW, prefill_steps=steps)  # type: ignore[arg-type]
    engine = ChatEngine("test", Qwen25VLModel(CHECKPOINT), settings, placement)
    engine.load()
    engine._launcher.runner.packs = packs
    engine.warm(lambda *_: None)
    return engine


def assert_whole(times: PassTimes, room: Room) -> None:
    limits = room.runner.limits
    assert tuple(times.decode) == room.runner.decode_widths
    assert tuple(times.prompt) == limits.chunk_widths
    assert max(times.vision) <= room.pictures.buckets[-1] // 4
    for table in (times.decode, times.prompt, times.vision):
        seconds = list(table.values())
        assert all(0 < a <= b for a, b in pairwise([*seconds, seconds[-1]]))


def test_every_width_is_measured_and_no_answer_changes(wild_checkpoint: Path) -> None:
    room = Room.open_ahead(wild_checkpoint, **FEW)
    requests = [chat("tell me", max_tokens=9), chat(png(1), "and this", max_tokens=9)]
    before = room.answers(requests)
    times = measure_passes(room.runner, room.pictures, room.engine._placement)
    assert_whole(times, room)
    assert room.answers(requests) == before
    assert room.engine.describe()["captures_after_ready"] == 0


def test_a_start_measures_if_it_is_asked_to(plain: Placement) -> None:
    found = ready(1.4, plain, packs=True)
    budget = found.describe()["step_budget"]
    assert budget["steps"] == 1.4  # type: ignore[index]
    assert list(budget["rows"]) == ["1", "2", "4"]  # type: ignore[index]
    assert orjson.loads(orjson.dumps(found.describe()))["step_budget"] == budget
    assert found._planner.costs.decode_s(4) > 0
    assert found.describe()["captures_after_ready"] == 0


@pytest.mark.parametrize(("steps", "packs"), [(0.0, True), (0.0, False), (1.4, False)])
def test_a_start_that_has_no_use_for_times_runs_no_pass_for_them(
    plain: Placement,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    steps: float,
    packs: bool,
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(pass_timing, "measure_passes", lambda *given: measured.append(given))
    caplog.set_level(logging.WARNING)
    found = ready(steps, plain, packs=packs)
    assert not measured
    assert found.describe()["step_budget"] is None
    told = [record.getMessage() for record in caplog.records if "no effect" in record.message]
    assert len(told) == (steps > 0)
    assert all("qwen_vl.prefill_steps 1.4" in message for message in told)


@pytest.mark.parametrize(("took_s", "runs"), [(1e-3, REPLAYS), (0.015, 3), (PASS_S, 2), (1.0, 1)])
def test_a_slow_pass_is_run_less_often(
    plain: Placement, monkeypatch: pytest.MonkeyPatch, took_s: float, runs: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(pacing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    calls = []

    def run() -> None:
        calls.append(1)
        now[0] += took_s * (2 if len(calls) == 2 else 1)

    seconds: Callable[..., float] = pass_timing._seconds
    assert seconds(plain, run) == pytest.approx(took_s)  # the shortest counts
    assert len(calls) == runs


@pytest.mark.gpu
def test_on_a_gpu_passes_are_measured_without_captures(
    wild_checkpoint: Path,
) -> None:
    room = Room.open(wild_checkpoint, "auto", "cuda")
    request = chat(png(1), "and this", max_tokens=9)
    before = room.answer(request)
    budget = measured_budget("test", 1.4, room.runner, room.pictures, room.engine._placement)
    assert budget is not None
    assert_whole(budget.times, room)
    room.engine._planner.set_budget(budget)
    assert room.answer(request) == before
    assert room.engine.describe()["captures_after_ready"] == 0
