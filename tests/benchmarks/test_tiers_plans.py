"""The plans that are compared are what their names say, and so are their coefficients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.flux import tiers_plans as flux_tiers_plans
from benchmarks.flux.tiers_plans import (
    CALLS,
    CHECKPOINT,
    GROWING,
    STEPS,
    adams_bashforth,
    even_levels,
    even_steps,
    growing,
    skipping,
    ways,
)
from predictors.diffusion.sampling import plan_calls
from predictors.models.flux.config import read_checkpoint

SCHEDULE = read_checkpoint(CHECKPOINT)[0].schedule
NUM_PATCHES = 64


@given(st.sampled_from(CALLS), st.integers(1, 5), st.integers(0, 5))
def test_even_plans_have_the_calls_and_the_dense_ends_asked_for(
    num_calls: int, first: int, last: int
) -> None:
    levels = SCHEDULE.sigmas(STEPS, NUM_PATCHES)
    plans = [even_steps(num_calls, first, last)]
    plans += [even_levels(levels, num_calls, first, last)] if last else []
    for called in plans:
        assert (len(called), sum(called)) == (STEPS, num_calls)
        assert all(called[:first])
        assert all(called[STEPS - last :])


@pytest.mark.parametrize("num_calls", GROWING)
def test_growing_gaps_end_at_the_last_step(num_calls: int) -> None:
    called = growing(GROWING[num_calls])
    assert (len(called), sum(called), called[-1]) == (STEPS, num_calls, True)
    assert set(np.diff(np.diff(np.flatnonzero(called)))) <= {0, 1}


def test_the_plan_in_use_is_one_of_those_with_growing_gaps() -> None:
    assert plan_calls(STEPS) == growing(GROWING[sum(plan_calls(STEPS))])


def test_all_ways_go_from_noise_to_picture_once() -> None:
    found = list(ways(SCHEDULE, NUM_PATCHES))
    assert {way.num_calls for way in found} >= set(CALLS)
    for way in found:
        assert (len(way.sigmas), way.pairs.shape) == (way.num_calls + 1, (way.num_calls, 2))
        assert (way.sigmas[0], way.sigmas[-1]) == (1, 0)
        assert way.pairs.sum() == pytest.approx(-1, abs=1e-5)


def test_adams_bashforth_integrates_a_line_exactly_after_its_first_step() -> None:
    levels = SCHEDULE.sigmas(16, NUM_PATCHES)
    pairs, velocity = adams_bashforth(levels), levels[:-1].astype(np.float64)
    moved = pairs[:, 0] * velocity + pairs[:, 1] * np.append(0.0, velocity[:-1])
    exact = (levels[1] - levels[0]) * levels[0] - levels[1] ** 2 / 2
    assert moved.sum() == pytest.approx(exact, abs=1e-6)


def test_ways_are_measured_against_all_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = SCHEDULE.sigmas(STEPS, NUM_PATCHES)
    few = [skipping("turbo", levels, plan_calls(STEPS)), skipping("again", levels, (True,) * STEPS)]
    monkeypatch.setattr(flux_tiers_plans, "ways", lambda *_: few)
    monkeypatch.setattr(flux_tiers_plans, "FINE_STEPS", 30)
    out = tmp_path / "plans.json"
    flux_tiers_plans.main(["--prompts", "2", "--device", "cpu", "--out", str(out)])
    everything, turbo, again = json.loads(out.read_text())["ways"]
    assert everything["to_all_calls_mean"] == again["to_all_calls_mean"] == 0
    assert 0 < turbo["to_all_calls_mean"] < 0.1
    assert turbo["to_fine_mean"] > 0
    assert "turbo" in capsys.readouterr().out
