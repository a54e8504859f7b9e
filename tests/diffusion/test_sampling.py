"""The schedule is diffusers' bit for bit, packing is the pipeline's, a step is the scheduler's, and
steps without the model go where its last two velocities point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.diffusion.sampling import (
    COARSE_FROM,
    DENSE_UP_TO,
    Schedule,
    draw_noise,
    euler,
    extrapolate,
    guide,
    pack_patches,
    plan_calls,
    unpack_patches,
    update_coefficients,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "dev": {"use_dynamic_shifting": True, "shift": 3.0},
    "schnell": {"shift": 1.0},
    "fixed shift": {"shift": 3.0},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    "other ends": {"use_dynamic_shifting": True, "base_shift": 0.25, "max_image_seq_len": 8192},
}


def reference(config: dict[str, Any], num_steps: int, num_patches: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(num_patches, *(scheduler.config[name] for name in names))
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
    scheduler.set_timesteps(num_steps, sigmas=sigmas, mu=mu)
    return scheduler


@pytest.mark.parametrize("name", CONFIGS)
@given(num_steps=st.integers(2, 100), num_patches=st.integers(16, 16_384))
def test_sigmas_and_timesteps_equal_diffusers_to_the_bit(
    name: str, num_steps: int, num_patches: int
) -> None:
    scheduler = reference(CONFIGS[name], num_steps, num_patches)
    schedule = Schedule.of(scheduler.config)
    sigmas = schedule.sigmas(num_steps, num_patches)
    assert torch.equal(torch.from_numpy(sigmas), scheduler.sigmas)
    for dtype in (torch.float32, torch.bfloat16):
        theirs = torch.stack([t.expand(1).to(dtype)[0] / 1000 for t in scheduler.timesteps]) * 1000
        assert torch.equal(schedule.timesteps(sigmas, dtype), theirs)


def test_one_step_goes_from_level_one_to_zero() -> None:
    for name in ("dev", "schnell", "terminal"):
        schedule = Schedule.of(FlowMatchEulerDiscreteScheduler(**CONFIGS[name]).config)
        assert schedule.sigmas(1, 64).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_schedulers_step(dtype: torch.dtype) -> None:
    scheduler = reference(CONFIGS["dev"], 4, 64)
    scheduler.set_begin_index(0)
    latents = ours = torch.randn(64, 16).to(dtype)
    dts = torch.from_numpy(Schedule.of(scheduler.config).sigmas(4, 64)).diff().to(dtype)
    for i, t in enumerate(scheduler.timesteps):
        velocity = torch.randn(64, 16).to(dtype)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        ours = euler(ours, velocity, dts[i])
        assert torch.equal(ours, latents), i


def test_guidance_of_one_is_the_conditional_and_of_zero_the_other() -> None:
    yes, no = torch.randn(2, 5, 3).unbind()
    assert torch.allclose(guide(yes, no, torch.tensor(1.0)), yes)
    assert torch.equal(guide(yes, no, torch.tensor(0.0)), no)
    assert torch.allclose(guide(yes, no, torch.tensor(4.0)), no + 4.0 * (yes - no))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_packing_is_the_pipelines_and_unpack_undoes_it(
    n: int, channels: int, rows: int, columns: int
) -> None:
    latents = torch.arange(float(n * channels * 4 * rows * columns))
    latents = latents.view(n, channels, 2 * rows, 2 * columns)
    packed = pack_patches(latents)
    theirs = FluxPipeline._pack_latents(latents, n, channels, 2 * rows, 2 * columns)
    assert torch.equal(packed, theirs)
    assert torch.equal(unpack_patches(packed, rows, columns), latents)
    assert torch.equal(
        unpack_patches(packed, rows, columns),
        FluxPipeline._unpack_latents(packed, 16 * rows, 16 * columns, 8),
    )


def test_noise_depends_on_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    seeds = (0, 1, 2**31, 2**53 - 2, 2**53 - 1)
    drawn = {draw_noise(seed, 16, 2, 2).numpy().tobytes() for seed in seeds}
    assert len(drawn) == len(seeds)
    assert torch.equal(torch.random.get_rng_state(), before)


# -- steps that don't call the model ---------------------------------------------------------------
def levels(name: str, num_steps: int, num_patches: int) -> NDArray[np.float32]:
    config = FlowMatchEulerDiscreteScheduler(**CONFIGS[name]).config
    return Schedule.of(config).sigmas(num_steps, num_patches)


@st.composite
def plans(draw: st.DrawFn) -> tuple[NDArray[np.float32], tuple[bool, ...]]:
    """Noise levels of any schedule, and any plan for them."""
    num_steps = draw(st.integers(1, 100))
    name = draw(st.sampled_from(list(CONFIGS)))
    called = draw(st.lists(st.booleans(), min_size=num_steps - 1, max_size=num_steps - 1))
    return levels(name, num_steps, draw(st.integers(16, 16_384))), (True, *called)


def one_by_one(
    sigmas: NDArray[np.float32], called: Sequence[bool], velocities: NDArray[np.float64]
) -> list[float]:
    """Where x is at each call and at the end, by Euler steps over extrapolated velocities."""
    x, seen, at = 0.0, [], []
    s = sigmas.astype(np.float64)
    for n, is_call in enumerate(called):
        if is_call:
            at.append(x)
            seen.append((s[n], velocities[len(seen)]))
        level, v = seen[-1]
        if len(seen) > 1 and seen[-2][0] != level:
            v = v + (s[n] - level) / (level - seen[-2][0]) * (v - seen[-2][1])
        x += (s[n + 1] - s[n]) * v
    return [*at, x]


@given(plans(), st.integers(0, 2**32 - 1))
def test_collapsed_steps_go_where_stepping_one_by_one_goes(
    plan: tuple[NDArray[np.float32], tuple[bool, ...]], seed: int
) -> None:
    sigmas, called = plan
    pairs = update_coefficients(sigmas, called)
    assert (pairs.dtype, pairs.shape) == (np.float32, (sum(called), 2))
    velocities = np.random.default_rng(seed).normal(size=sum(called))
    moves = pairs[:, 0] * velocities + pairs[:, 1] * np.append(0.0, velocities[:-1])
    expected = one_by_one(sigmas, called, velocities)
    rounding = 1e-6 * (np.abs(pairs).sum() * np.abs(velocities).max() + 1)
    assert np.allclose(np.cumsum(moves), expected[1:], rtol=0, atol=rounding)


@given(plans())
def test_collapsed_steps_are_finite_and_together_as_long_as_the_schedule(
    plan: tuple[NDArray[np.float32], tuple[bool, ...]],
) -> None:
    sigmas, called = plan
    pairs = update_coefficients(sigmas, called).astype(np.float64)
    assert np.isfinite(pairs).all()
    assert pairs[0, 1] == 0
    assert abs(pairs.sum() + 1) < 1e-6 * (1 + np.abs(pairs).sum())  # from noise level 1 to 0


@given(st.sampled_from(list(CONFIGS)), st.integers(1, 100), st.integers(16, 16_384))
def test_calling_the_model_at_each_step_is_eulers_method(
    name: str, num_steps: int, num_patches: int
) -> None:
    sigmas = levels(name, num_steps, num_patches)
    pairs = update_coefficients(sigmas, (True,) * num_steps)
    assert np.array_equal(pairs[:, 0], np.diff(sigmas))
    assert not pairs[:, 1].any()


@given(
    st.sampled_from(list(CONFIGS)),
    st.integers(2, 100),
    st.integers(16, 16_384),
    st.floats(-10, 10),
    st.floats(-10, 10),
)
def test_a_velocity_linear_in_the_noise_level_is_extrapolated_exactly(
    name: str, num_steps: int, num_patches: int, offset: float, slope: float
) -> None:
    sigmas = levels(name, num_steps, num_patches).astype(np.float64)
    velocities = offset + slope * sigmas[:-1]
    euler_end = (np.diff(sigmas) * velocities).sum()
    called = np.array(plan_calls(num_steps))
    pairs = update_coefficients(sigmas.astype(np.float32), called)
    kept = velocities[called]
    end = (pairs[:, 0] * kept + pairs[:, 1] * np.append(0.0, kept[:-1])).sum()
    assert abs(end - euler_end) < 1e-5 * (abs(offset) + abs(slope) + 1)


@given(st.sampled_from(list(CONFIGS)), st.integers(1, 100), st.integers(16, 16_384))
def test_an_error_of_a_call_grows_at_most_threefold(
    name: str, num_steps: int, num_patches: int
) -> None:
    pairs = update_coefficients(levels(name, num_steps, num_patches), plan_calls(num_steps))
    assert np.abs(pairs).sum() <= 3  # Euler's is 1


@given(st.integers(1, 100))
def test_the_plan_calls_at_both_ends_and_its_gaps_grow_one_by_one(num_steps: int) -> None:
    called = plan_calls(num_steps)
    calls = np.flatnonzero(called)
    assert len(called) == num_steps
    assert called[0]
    assert called[-1]
    assert all(called) == (num_steps <= DENSE_UP_TO)
    gaps = np.diff(calls)
    assert all(gaps[: num_steps // 6] == 1)
    assert all(gaps <= (3 if num_steps >= COARSE_FROM else 2))
    before_the_last = np.diff(gaps[:-1])  # the last may be cut short by the end
    assert all((before_the_last == 0) | (before_the_last == 1))


@pytest.mark.parametrize(
    ("num_steps", "marks"),
    [
        (4, "xxxx"),
        (8, "xxxxxxxx"),
        (12, "xxx.x.x.x.xx"),
        (28, "xxxxxx.x.x..x..x..x..x..x..x"),
    ],
)
def test_the_calls_of_a_schedule(num_steps: int, marks: str) -> None:
    assert "".join(".x"[is_call] for is_call in plan_calls(num_steps)) == marks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_steps_are_summed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    drawn = torch.randn(3, 512, 16, generator=torch.Generator().manual_seed(1))
    latents, velocity, previous = drawn.to(dtype).unbind()
    pair = torch.tensor([-0.0625, 0.015625])
    moved = extrapolate(latents, velocity, previous, pair)
    exact = latents.double() + pair[0] * velocity.double() + pair[1] * previous.double()
    assert moved.dtype == dtype
    # half a unit in the last place for the one rounding, and float32's own for the sums
    assert torch.allclose(moved.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)


def test_with_one_velocity_only_extrapolation_is_eulers_step() -> None:
    latents, velocity = torch.randn(2, 64, 16).unbind()
    pair = torch.tensor([-0.3, 0.0])
    expected = euler(latents, velocity, pair[0])
    assert torch.equal(extrapolate(latents, velocity, None, pair), expected)
    assert torch.equal(extrapolate(latents, velocity, torch.randn(64, 16), pair), expected)
