"""Callers share the steps: each step's seconds go to the jobs that it advanced, the caller who has
used least goes first, and one who comes while others hold all slots gets a spare one.

Seconds are scripted, so the tests do not depend on a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.compute.device import pacing
from predictors.compute.device.pacing import DeviceSpan
from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from predictors.diffusion.runner import DiffusionRunner
from predictors.diffusion.scheduling import Candidate, DenoiseStep, StepCharges, pick_group
from predictors.serving.accounts import Account
from tests.diffusion.driver import DiffusionJob, EngineDriver, drive_model, open_driver, picture
from tests.diffusion.tiny_model import TinyModel
from tests.timed_passes import TimedPasses

SMALL, LARGE = (32, 32), (64, 64)
WIDTHS = {"a": 1, "b": 2, "c": 4}


# -- the choice ----------------------------------------------------------------------------------
def candidates(turns: int) -> st.SearchStrategy[list[Candidate]]:
    return st.lists(
        st.builds(
            Candidate,
            st.sampled_from("abc"),
            st.integers(1, 2),
            st.integers(1, 9).map(float),
            st.integers(0, 9).map(float),
            st.integers(0, turns - 1),
            st.just(1 / turns),
        ),
        min_size=1,
        max_size=12,
    )


@given(candidates(1))
def test_one_callers_pictures_are_picked_as_ever(found: list[Candidate]) -> None:
    order = sorted(
        range(len(found)),
        key=lambda i: (-found[i].waited_s * (found[i].waited_s > 5.0), found[i].remaining, i),
    )
    shape = found[order[0]].shape
    rows, expected = 0, []
    for i in order:
        fits = not expected or rows + found[i].num_rows <= WIDTHS[str(shape)]
        if found[i].shape == shape and fits:
            expected.append(i)
            rows += found[i].num_rows
    assert pick_group(found, WIDTHS.__getitem__, 5.0) == sorted(expected)


@given(candidates(3))
def test_the_caller_at_turn_goes_first_and_others_only_share_its_pass(
    found: list[Candidate],
) -> None:
    picked = pick_group(found, WIDTHS.__getitem__, 5.0)
    first = min(one.turn for one in found)
    own = [found[i] for i in picked if found[i].turn == first]
    rows = sum(found[i].num_rows for i in picked)
    own_rows = sum(one.num_rows for one in own)
    assert own
    assert rows <= max(own_rows, WIDTHS[str(own[0].shape)], found[picked[0]].num_rows)
    assert rows <= 3 * own_rows  # the pass takes no longer than its share of the device allows


# -- the engine ----------------------------------------------------------------------------------
@dataclass
class Shared:
    """An engine whose steps take scripted seconds, and the seconds so far."""

    driver: EngineDriver
    seconds: float = 0.0
    steps: int = 0
    rows: list[int] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)

    def job(self, caller: str, size: tuple[int, int], steps: int, seed: int = 0) -> DiffusionJob:
        """A job of that caller."""
        job = self.driver.job(ImageParameters("x", width=size[0], height=size[1], seed=seed,
                                              num_inference_steps=steps))  # fmt: skip
        job.account = self.accounts.setdefault(caller, Account(caller))
        return job

    def step(self) -> None:
        self.driver.engine.step(self.driver.engine.active)
        self.steps += 1

    def fill(self, caller: str, size: tuple[int, int], steps: int, most: int = 10**6) -> None:
        """Admit jobs of a greedy caller until none fits."""
        engine = self.driver.engine
        held = sum(job.account.name == caller for job in engine.active)
        while held < most and engine.admit(self.job(caller, size, steps)):
            held += 1

    def used_s(self, caller: str) -> float:
        return self.accounts[caller].used_s


def seconds_of(step: DenoiseStep) -> float:
    """A pass takes as long as its rows, as on a CPU: a large picture's row a second."""
    shape = step.slots[0].job.work.shape
    return shape.rows * shape.columns * step.rows / 64


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    placement = Placement(torch.device("cpu"), torch.float32, "off")
    driver = drive_model(
        TinyModel(), placement, sizes="32x32,64x64", default_size="32x32", min_side=32
    )
    made = Shared(driver)
    launched, finished = StepCharges.charge_launched, StepCharges.charge_finished

    def launch(self: StepCharges, step: DenoiseStep) -> None:
        made.seconds += seconds_of(step)
        made.rows.append(step.rows)
        launched(self, step)

    monkeypatch.setattr(StepCharges, "charge_launched", launch)
    monkeypatch.setattr(
        StepCharges, "charge_finished", lambda self, step, _: finished(self, step, seconds_of(step))
    )
    monkeypatch.setattr(DeviceSpan, "seconds", lambda self: 0.0)
    return made


def test_a_steps_seconds_go_to_the_jobs_that_it_advanced(shared: Shared) -> None:
    jobs = [shared.job("one", SMALL, 3), shared.job("two", SMALL, 3), shared.job("two", LARGE, 2)]
    for job in jobs:
        assert shared.driver.engine.admit(job)
    while shared.driver.engine.busy:
        shared.step()
    assert sum(job.used_s for job in jobs) == pytest.approx(shared.seconds)
    assert [job.used_s for job in jobs] == pytest.approx([3 / 4, 3 / 4, 2.0])
    assert shared.used_s("one") == pytest.approx(3 / 4)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("greedy", [SMALL, LARGE], ids=["beside small", "beside large"])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_beside_a_greedy_caller_a_picture_takes_twice_its_time_and_a_step(
    shared: Shared, size: tuple[int, int], greedy: tuple[int, int], steps: int
) -> None:
    engine = shared.driver.engine
    alone_s = steps * size[0] * size[1] / 64 / 64
    most_s = 4 * greedy[0] * greedy[1] / 64 / 64  # the longest step of the greedy caller
    shared.fill("greedy", greedy, 100)
    for _ in range(7):
        shared.step()
    for _ in range(3):
        mine, started = shared.job("other", size, steps), shared.seconds
        assert engine.admit(mine)  # all slots are taken
        while not mine.done:
            shared.step()
            shared.fill("greedy", greedy, 100)
        assert shared.seconds - started <= 2.2 * alone_s + most_s
        del shared.accounts["other"]  # its last job has left


@pytest.mark.parametrize("other", [SMALL, LARGE], ids=["small", "large"])
def test_two_equal_callers_get_half_of_the_device_each(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, other: tuple[int, int]
) -> None:
    runner = shared.driver.engine.runner
    monkeypatch.setattr(runner, "width", lambda shape: 1)  # as `lossless` on a GPU
    shared.fill("many", LARGE, 28)
    shared.job("one", other, 28)
    mine: list[DiffusionJob] = []
    start = {name: shared.used_s(name) for name in ("many", "one")}
    while shared.seconds < 200:
        if not mine or mine[-1].done:
            mine.append(shared.job("one", other, 28))
            assert shared.driver.engine.admit(mine[-1])
        shared.step()
        shared.fill("many", LARGE, 28)
    used = [shared.used_s(name) - start[name] for name in ("many", "one")]
    assert min(used) >= 0.45 * sum(used)
    assert sum(used) == pytest.approx(shared.seconds, abs=4)


def test_a_weight_of_two_gets_two_thirds(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.driver.engine.runner, "width", lambda shape: 1)
    shared.accounts = {"heavy": Account("heavy", 2.0), "light": Account("light")}
    while shared.seconds < 200:
        for name in ("heavy", "light"):
            shared.fill(name, LARGE, 28, most=2)
        shared.step()
    assert shared.used_s("heavy") * 2 == pytest.approx(shared.seconds * 2 / 3, rel=0.03)


def test_spare_slots_are_for_callers_below_their_share(shared: Shared) -> None:
    engine = shared.driver.engine
    assert (engine.slots, engine.spare_slots) == (4, 2)
    shared.fill("greedy", SMALL, 9)
    assert len(engine.active) == 4
    assert engine.admit(shared.job("second", SMALL, 9))
    assert not engine.admit(shared.job("greedy", SMALL, 9))
    assert engine.admit(shared.job("third", SMALL, 9))
    assert not engine.admit(shared.job("fourth", SMALL, 9))
    for _ in range(30):
        shared.step()
    assert max(shared.rows) <= 4


def test_the_seconds_of_all_passes_are_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass of the embedded model takes scripted seconds: of texts, steps and decoders."""
    driver = open_driver(sizes="64x64,96x64")
    took = {"encode": 3.0, "denoise": 2.0, "decode": 5.0}
    passes = TimedPasses(monkeypatch, DiffusionRunner, took, pacing)
    waiting = [
        driver.job(ImageParameters(f"a red circle {i}", num_inference_steps=3, width=size))
        for i, size in enumerate((64, 96, 64, 64, 96, 64))
    ]
    accounts = [Account("one"), Account("two")]
    jobs = list(waiting)
    for i, job in enumerate(jobs):
        job.account = accounts[i % 2]
    while waiting or driver.engine.busy:
        while waiting and driver.engine.admit(waiting[0]):
            waiting.pop(0)
        driver.engine.step(driver.engine.active)
    assert passes.busy_s >= 6 * (3.0 + 5.0)
    assert sum(job.used_s for job in jobs) == pytest.approx(passes.busy_s)
    assert sum(account.used_s for account in accounts) == pytest.approx(passes.busy_s)
    assert all(job.used_s >= 3.0 + 5.0 for job in jobs)


# -- bits ------------------------------------------------------------------------------------------
def test_pictures_in_spare_slots_beside_a_greedy_caller_have_their_bytes_of_alone() -> None:
    driver = open_driver()
    images = [
        ImageParameters("a large red circle", num_inference_steps=3, seed=1),
        ImageParameters("green star", num_inference_steps=2, seed=3, width=96),
    ]
    alone = [driver.draw(image) for image in images]
    greedy, other = Account("greedy"), Account("other")
    engine = driver.engine
    for i in range(engine.slots):
        job = driver.job(replace(images[0], num_inference_steps=6, seed=9 + i))
        job.account = greedy
        assert engine.admit(job)
    engine.step(engine.active)
    mine = [driver.job(image) for image in images]
    for job in mine:
        job.account = other
        assert engine.admit(job)
    while engine.busy:
        engine.step(engine.active)
    assert_equal([picture(job) for job in mine], alone)
    assert engine.describe()["recompilations_after_ready"] == 0


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
