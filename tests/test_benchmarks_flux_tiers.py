"""The comparison of tiers counts, pairs and measures rightly, and runs where KServe is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import flux_tiers
from benchmarks.flux_tiers_likeness import (
    Pixels,
    RandomFeatures,
    anchors,
    difference_interval,
    psnr_db,
    share_interval,
)
from benchmarks.flux_tiers_plans import (
    CALLS,
    STEPS,
    adams_bashforth,
    even_levels,
    even_steps,
    ways,
)
from predictors.flux.facts import read_facts
from predictors.flux.sampling import Schedule

SCHEDULE = Schedule.of(read_facts(flux_tiers.CHECKPOINT)[0].scheduler)
NUM_PATCHES = 64
BLOCKED = "import sys; sys.modules['kserve'] = None; import benchmarks.flux_tiers"


def picture(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def test_nothing_of_it_imports_kserve() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, cwd=flux_tiers.ROOT)


# -- statistics ------------------------------------------------------------------------------------
def test_the_share_interval_is_wilsons() -> None:
    assert share_interval(285, 300) == pytest.approx((0.919, 0.9695), abs=1e-3)
    assert share_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_the_difference_interval_brackets_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    low, high = difference_interval(first, second)
    assert -1 <= low <= (sum(second) - sum(first)) / len(pairs) <= high <= 1
    assert difference_interval(second, first) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("p_lost", "p_won"), [(0.002, 0.002), (0.02, 0.005), (0.0, 0.0)])
def test_the_difference_interval_covers_the_truth_95_times_of_100(
    p_lost: float, p_won: float
) -> None:
    rng, total, covered = np.random.default_rng(1), 500, 0
    for _ in range(400):
        lost, won, _ = rng.multinomial(total, [p_lost, p_won, 1 - p_lost - p_won])
        first = [i < lost for i in range(total)]
        second = [lost <= i < lost + won for i in range(total)]
        low, high = difference_interval(first, second)
        covered += low <= p_won - p_lost <= high
    assert covered >= 0.93 * 400


def test_agreement_on_2000_prompts_is_known_to_a_fraction_of_a_point() -> None:
    same = [True] * 1900 + [False] * 100
    low, high = difference_interval(same, same)
    assert -0.002 < low < 0 < high < 0.002


# -- likeness --------------------------------------------------------------------------------------
def test_psnr_is_that_of_the_mean_squared_error() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert psnr_db(grey, grey + 10) == pytest.approx(20 * np.log10(25.5))
    assert psnr_db(grey, grey) == float("inf")


def test_the_distance_is_none_of_equals_and_grows_with_noise() -> None:
    features = RandomFeatures(torch.device("cpu"))
    flat = np.full((32, 32, 3), 128, np.uint8)
    noise = np.random.default_rng(0).normal(size=flat.shape)
    noisy = [(flat + scale * noise).round().astype(np.uint8) for scale in (0, 2, 8, 30)]
    found = features.distances([flat] * 4, noisy)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, RandomFeatures(torch.device("cpu")).distances([flat] * 4, noisy))


def test_anchors_tell_a_compressed_picture_from_another() -> None:
    pictures = [np.kron(picture(i)[:4, :4], np.ones((8, 8, 1), np.uint8)) for i in range(3)]
    compressed, another = anchors(pictures, RandomFeatures(torch.device("cpu")).distances).values()
    assert 0 < compressed < another


# -- plans -----------------------------------------------------------------------------------------
@given(st.sampled_from(CALLS), st.integers(1, 5), st.integers(0, 5))
def test_even_plans_have_the_calls_and_the_dense_ends_asked_for(
    num_calls: int, first: int, last: int
) -> None:
    levels = SCHEDULE.sigmas(STEPS, NUM_PATCHES)
    plans = [even_steps(num_calls, first, last)]
    plans += [even_levels(levels, num_calls, first, last)] if last else []
    for called in plans:
        assert len(called) == STEPS
        assert sum(called) == num_calls
        assert all(called[:first])
        assert all(called[STEPS - last :])


def test_all_ways_go_from_noise_to_picture_once() -> None:
    found = list(ways(SCHEDULE, NUM_PATCHES))
    assert {way.num_calls for way in found} >= set(CALLS)
    assert "turbo" in {way.name for way in found}
    for way in found:
        assert (len(way.sigmas), way.pairs.shape) == (way.num_calls + 1, (way.num_calls, 2))
        assert (way.sigmas[0], way.sigmas[-1]) == (1, 0)
        assert way.pairs.sum() == pytest.approx(-1, abs=1e-5)


def test_adams_bashforth_integrates_a_line_exactly_but_for_its_first_step() -> None:
    levels = SCHEDULE.sigmas(16, NUM_PATCHES)
    pairs, velocity = adams_bashforth(levels), levels[:-1].astype(np.float64)
    moved = pairs[:, 0] * velocity + pairs[:, 1] * np.append(0.0, velocity[:-1])
    first = (levels[1] - levels[0]) * levels[0]
    exact = first - levels[1] ** 2 / 2
    assert moved.sum() == pytest.approx(exact, abs=1e-6)


# -- as it is run ----------------------------------------------------------------------------------
def test_tiers_are_compared_through_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(flux_tiers.SETTINGS, "default_steps", 9)
    out = tmp_path / "tiers.json"
    flux_tiers.main(["--count", "3", "--device", "cpu", "--tiers", "lossless,turbo",
                     "--out", str(out)])  # fmt: skip
    report: dict[str, Any] = json.loads(out.read_text())
    assert report["prompts"] == 3
    assert list(report["tiers"]) == ["lossless", "turbo"]
    assert report["tiers"]["turbo"]["identical"] == 0
    assert report["tiers"]["turbo"]["psnr_db_mean"] > 15
    assert report["precision"] == "float32"
    assert "points" in capsys.readouterr().out
