"""The simulation of `benchmarks.prefill_steps`: the bound holds in it, and without a bound it is
near what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.common import journal
from benchmarks.prefill_steps import LOADS, STEPS, WAYS, Found, SimulatedEngine, pass_times

KEPT = journal.results("prefill_steps")["loads"]
SERVED = journal.results("qwen_vl")["http"]


def simulated(clients: int, steps: float) -> Found:
    load = replace(LOADS["64 x text"], clients=clients)
    return SimulatedEngine(load, steps, "apart", seed=0).run(clients)


def test_a_gap_is_a_decode_step_and_a_pass_that_the_bound_allows() -> None:
    times = pass_times("apart")
    bounded, free = simulated(24, 1.4), simulated(24, 0.0)
    for rows in (8, 16, 24):
        assert times.prompt_s(times.free_rows) <= 1.4 * times.decode_s(rows)
    longest_s = times.decode_s(24) * 2.4 + 24 * 200 * 1.2e-8
    assert max(bounded.gaps_s) <= longest_s < max(free.gaps_s)
    assert bounded.answers >= 24


def test_a_run_gives_the_same_figures_again() -> None:
    assert simulated(8, 2.0).figures() == simulated(8, 2.0).figures()


@pytest.mark.parametrize("load", sorted(set(LOADS) & set(SERVED)))
def test_without_a_bound_the_simulation_is_near_what_was_measured(load: str) -> None:
    found, served = KEPT["apart"][load]["0"], SERVED[load]
    assert found["gap_ms_p99"] == pytest.approx(served["itl_ms_p99"], rel=0.16)
    assert found["requests_per_s"] == pytest.approx(served["requests_per_s"], rel=0.18)


def test_every_load_was_simulated_with_every_bound() -> None:
    assert set(KEPT) == set(WAYS)
    for loads in KEPT.values():
        assert set(loads) == set(LOADS)
        for by_steps in loads.values():
            assert [float(steps) for steps in by_steps] == list(STEPS)
