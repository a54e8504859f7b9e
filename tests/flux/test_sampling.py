"""The schedule is diffusers' bit for bit, packing is the pipeline's, and a step is the
scheduler's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.flux.sampling import Schedule, draw_noise, euler, guide, pack, unpack

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


def test_one_step_goes_from_noise_to_picture_at_once() -> None:
    for name in ("dev", "schnell", "terminal"):
        schedule = Schedule.of(FlowMatchEulerDiscreteScheduler(**CONFIGS[name]).config)
        assert schedule.sigmas(1, 64).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("knob", ["use_karras_sigmas", "invert_sigmas", "stochastic_sampling"])
def test_a_schedule_that_is_not_served_is_refused_by_name(knob: str) -> None:
    with pytest.raises(InvalidRequest, match=knob):
        Schedule.of(FlowMatchEulerDiscreteScheduler(**{knob: True}).config)


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
    packed = pack(latents)
    theirs = FluxPipeline._pack_latents(latents, n, channels, 2 * rows, 2 * columns)
    assert torch.equal(packed, theirs)
    assert torch.equal(unpack(packed, rows, columns), latents)
    assert torch.equal(
        unpack(packed, rows, columns),
        FluxPipeline._unpack_latents(packed, 16 * rows, 16 * columns, 8),
    )


def test_noise_is_what_the_pipeline_draws_from_the_same_seed(pipeline: FluxPipeline) -> None:
    generator = torch.Generator("cpu").manual_seed(77)
    theirs, _ = pipeline.prepare_latents(
        1, 16, 96, 64, torch.float32, torch.device("cpu"), generator
    )
    assert torch.equal(draw_noise(77, 16, 6, 4), theirs[0])


def test_noise_depends_on_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    seeds = (0, 1, 2**31, 2**53 - 2, 2**53 - 1)
    drawn = {draw_noise(seed, 16, 2, 2).numpy().tobytes() for seed in seeds}
    assert len(drawn) == len(seeds)
    assert torch.equal(torch.random.get_rng_state(), before)
