"""The noise schedule, the Euler update of flow matching with or without a call of the model for
each of its steps, and how latents are packed. Pure arithmetic: knows no model and no request.

The schedule is diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps`, bit for bit; the packing
is `FluxPipeline._pack_latents`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.errors import InvalidRequest
from predictors.models.flux.folder import UNSERVED_OPTIONS

# how `plan` places model calls; `benchmarks/flux/tiers_plans.py` compares it with others
DENSE_UP_TO = 8
COARSE_FROM = 16
GROWTH = (1 / 6, 0.3)
"""Shares of the schedule after which calls are two steps apart, and three."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A checkpoint's noise schedule; fields are named as in its scheduler config."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Schedule:
        """From the config of a `FlowMatchEulerDiscreteScheduler`, defaults filled in."""
        for name in UNSERVED_OPTIONS:
            if config.get(name):
                raise InvalidRequest(f"the checkpoint's schedule sets {name}, which is not served")
        return cls(**{field.name: config[field.name] for field in fields(cls)})

    def sigmas(self, num_steps: int, num_patches: int) -> NDArray[np.float32]:
        """Noise levels from 1 down to 0: float32 (num_steps + 1,)."""
        sigmas: NDArray[np.float32]
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps).astype(np.float32)
        if self.use_dynamic_shifting:
            sigmas = self._shift_by_size(sigmas, num_patches)
        else:
            sigmas = (self.shift * sigmas / (1 + (self.shift - 1) * sigmas)).astype(np.float32)
        if self.shift_terminal and num_steps > 1:  # one step has no other end to stretch
            away = 1 - sigmas
            sigmas = (1 - away / (away[-1] / (1 - self.shift_terminal))).astype(np.float32)
        return np.append(sigmas, np.float32(0)).astype(np.float32)

    def _shift_by_size(self, sigmas: NDArray[np.float32], num_patches: int) -> NDArray[np.float32]:
        # FluxPipeline's calculate_shift: more patches need more noise for longer
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        mu = num_patches * slope + (self.base_shift - slope * self.base_image_seq_len)
        weight = math.exp(mu) if self.time_shift_type == "exponential" else mu
        shifted = weight / (weight + (1 / sigmas - 1))
        return shifted.astype(np.float32)

    def timesteps(self, sigmas: NDArray[np.float32], dtype: torch.dtype) -> Tensor:
        """What the time embedder takes, (steps,) in `dtype`, one per noise level but the last.

        The pipeline hands the model timestep / 1000 in the model's dtype and the model multiplies
        by 1000 again: in bfloat16 that rounds twice, and the model was sampled that way ever since.
        """
        timesteps = torch.from_numpy(sigmas[:-1].copy()) * self.num_train_timesteps
        return timesteps.to(dtype) / 1000 * 1000


@dataclass(frozen=True, slots=True)
class Course:
    """All that the steps of one picture need besides its prompt, on the host.

    K counts the steps that call the model: all of the schedule's if `is_exact`.
    """

    noise: Tensor
    """float32 (patches, channels)."""
    timesteps: Tensor
    """(K,) as `Schedule.timesteps` makes them, in the model's dtype."""
    dts: Tensor
    """(K,) noise level that each call goes down by, as a negative number, in the model's dtype."""
    coefficients: Tensor
    """float32 (K, 2) as `collapsed` makes them."""
    num_steps: int
    """Steps of the schedule, K or more."""
    guidance: Tensor
    """(1,) guidance scale times 1000, in the model's dtype."""
    cfg_scale: Tensor
    """() true CFG scale, float32."""
    rows: int
    """Patches down."""
    columns: int
    """Patches across."""

    @property
    def num_calls(self) -> int:
        """K."""
        return self.timesteps.shape[0]

    @property
    def is_exact(self) -> bool:
        """Whether each step calls the model: then `euler` over `dts` is the update, to the bit of
        the scheduler's, else `extrapolate` over `coefficients`."""
        return self.num_calls == self.num_steps


def plan(num_steps: int) -> tuple[bool, ...]:
    """Which steps of a schedule call the model where skipping is allowed: (num_steps,), the first
    and the last always.

    The velocity turns most in the first sixth, where it is decided what will be where: each step
    there calls. Then calls are two steps apart and from 0.3 on three, since gaps that grow one by
    one ask least of the extrapolation. Schedules of less than `COARSE_FROM` steps keep to two; a
    checkpoint that draws in `DENSE_UP_TO` steps or fewer was distilled to need each of them.
    """
    if num_steps <= DENSE_UP_TO:
        return (True,) * num_steps
    largest = 3 if num_steps >= COARSE_FROM else 2
    calls, step = {num_steps - 1}, 0
    while step < num_steps:
        calls.add(step)
        gap = 1 + sum(step >= share * num_steps for share in GROWTH)
        step += min(gap, largest)
    return tuple(step in calls for step in range(num_steps))


def collapsed(sigmas: NDArray[np.float32], called: Sequence[bool]) -> NDArray[np.float32]:
    """Coefficients (A, B) of x' = x + A * v_last + B * v_before, float32 (K, 2): all Euler steps
    from one call of the model to the next in one.

    `sigmas` (steps + 1,) as `Schedule.sigmas`; `called` (steps,) has K true, the first among them.

    With v_i and v_j the velocities of the last two calls, at noise levels s_i < s_j, the velocity
    at level s is taken to be on their line,

        v(s) = v_i + r * (v_i - v_j),    r = (s - s_i) / (s_i - s_j),

    so the Euler steps n from this call to the next sum up to

        x' - x = sum_n (s_(n+1) - s_n) * v(s_n) = A * v_i + B * v_j,
        A = sum_n (s_(n+1) - s_n) * (1 + r_n),    B = -sum_n (s_(n+1) - s_n) * r_n.

    With one velocity only, or two of one level, it counts as constant: A = s_next - s_i, B = 0.
    A call followed at once by the next has r = 0, which is Euler's step.
    """
    assert called[0]
    assert len(called) == len(sigmas) - 1
    levels = sigmas.astype(np.float64)
    calls = np.flatnonzero(np.asarray(called))
    ends = np.append(calls[1:], len(called))
    pairs = np.zeros((len(calls), 2))
    for k, (call, end) in enumerate(zip(calls, ends, strict=True)):
        steps = np.diff(levels[call : end + 1])
        apart = levels[call] - levels[calls[k - 1]] if k else 0.0
        ratio = (levels[call:end] - levels[call]) / apart if apart else np.zeros(len(steps))
        pairs[k] = (steps * (1 + ratio)).sum(), -(steps * ratio).sum()
    return pairs.astype(np.float32)


def euler(latents: Tensor, velocity: Tensor, dt: Tensor) -> Tensor:
    """x + dt * v, one step of the scheduler with its rounding: dt () in v's dtype, sum in float32.

    latents and velocity have any equal shape and dtype; so has the result.
    """
    return (latents.float() + dt * velocity).to(velocity.dtype)


def extrapolate(
    latents: Tensor, velocity: Tensor, previous: Tensor | None, coefficients: Tensor
) -> Tensor:
    """x + A * v + B * previous for `coefficients` (2,) as `collapsed` makes them: several steps.

    All of any one shape and dtype, as is the result; summed in float32 and rounded once.
    `previous` is the velocity of the call before, None at the first.
    """
    moved = latents.float() + coefficients[0] * velocity.float()
    if previous is not None:
        moved = moved + coefficients[1] * previous.float()
    return moved.to(velocity.dtype)


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """True classifier-free guidance: away from the negative prompt by `scale` (), in float32."""
    away = (scale * (conditional - unconditional).float()).to(conditional.dtype)
    return unconditional + away


def draw_noise(seed: int, channels: int, rows: int, columns: int) -> Tensor:
    """Packed initial noise, float32 (rows * columns, channels * 4), on the CPU.

    Drawn as (1, channels, 2 * rows, 2 * columns) from a generator of its own, so it depends on the
    seed and the size alone: not on the device, the dtype or other requests. torch's CPU generator
    keeps the low 32 bits of a seed, so seeds that are 2^32 apart draw the same, as in diffusers.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, 2 * rows, 2 * columns)
    return pack(torch.randn(shape, generator=generator, dtype=torch.float32))[0]


def pack(latents: Tensor) -> Tensor:
    """(n, channels, 2 * rows, 2 * columns) to (n, rows * columns, channels * 4): 2x2 patches."""
    n, channels, height, width = latents.shape
    patches = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (height // 2) * (width // 2), channels * 4)


def unpack(latents: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack`: (n, rows * columns, channels * 4) to (n, channels, 2r, 2c)."""
    n, _, features = latents.shape
    patches = latents.view(n, rows, columns, features // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, features // 4, 2 * rows, 2 * columns)
