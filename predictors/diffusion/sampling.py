"""The arithmetic of flow matching: noise schedule, Euler steps with or without a call of the model,
classifier-free guidance, and packed noise.

The schedule is diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps`, bit for bit; packing is
`FluxPipeline._pack_latents`. I counts latent patches, C a patch's channels.
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

# how `plan_calls` places model calls; `benchmarks/flux/tiers_plans.py` compares it with others
DENSE_UP_TO = 8
COARSE_FROM = 16
GROWTH = (1 / 6, 0.3)
"""Shares of the schedule after which calls are two steps apart, and three."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A checkpoint's noise schedule. Names and defaults of its fields are those of diffusers'
    `FlowMatchEulerDiscreteScheduler`."""

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
        """The schedule of a config of `FlowMatchEulerDiscreteScheduler`."""
        names = (field.name for field in fields(cls))
        return cls(**{name: config[name] for name in names if name in config})

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
        """The time embedder's input, (steps,) in `dtype`, one per noise level but the last.

        The pipeline passes timestep / 1000 in the model's dtype and the model multiplies by 1000
        again. In bfloat16 that rounds twice, and is kept, since the model is always sampled so.
        """
        timesteps = torch.from_numpy(sigmas[:-1].copy()) * self.num_train_timesteps
        return timesteps.to(dtype) / 1000 * 1000


@dataclass(frozen=True, slots=True)
class DenoisePlan:
    """The inputs of one picture's steps besides its prompt, on the host.

    K counts the steps that call the model: all steps that are run if `is_exact`. None are run of an
    edit of strength 0.
    """

    noise: Tensor
    """float32 (I, C)."""
    timesteps: Tensor
    """(K,) of `Schedule.timesteps`, in the model's dtype."""
    dts: Tensor
    """(K,) change of the noise level by each call, negative, in the model's dtype."""
    coefficients: Tensor
    """float32 (K, 2) of `update_coefficients`."""
    levels: tuple[float, ...]
    """Noise level before each call and after the last, K + 1."""
    num_steps: int
    """Steps that are run of the schedule, K or more."""
    guidance: Tensor
    """(1,) guidance scale times 1000, in the model's dtype."""
    cfg_scale: Tensor
    """() true CFG scale, float32."""
    rows: int
    """Patches down."""
    columns: int
    """Patches across."""
    reference: tuple[int, int] = (0, 0)
    """As `StepShape.reference`."""

    @property
    def num_calls(self) -> int:
        """K."""
        return self.timesteps.shape[0]

    @property
    def is_exact(self) -> bool:
        """True if each step calls the model. Then the update is `euler` over `dts`, equal to the
        scheduler's to the bit, else `extrapolate` over `coefficients`."""
        return self.num_calls == self.num_steps


def plan_calls(num_steps: int) -> tuple[bool, ...]:
    """The steps of a schedule that call the model where skipping is allowed: (num_steps,), of which
    the first and the last are always true.

    The velocity changes most in the first sixth, where the layout of the picture is decided, so
    each step there calls. Then calls are two steps apart and from 0.3 on three, since gaps that
    grow one by one are easiest to extrapolate over. In schedules of less than `COARSE_FROM` steps
    they stay two; a checkpoint that draws in `DENSE_UP_TO` steps or fewer was distilled to need
    each of them.
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


def first_step(num_steps: int, strength: float) -> int:
    """The step at which an edit of that strength starts, `num_steps` if it runs none: diffusers'
    `get_timesteps`, with its rounding."""
    return int(max(num_steps - min(num_steps * strength, num_steps), 0))


def update_coefficients(sigmas: NDArray[np.float32], called: Sequence[bool]) -> NDArray[np.float32]:
    """Coefficients (A, B) of the update x' = x + A * v_last + B * v_before, float32 (K, 2). Each
    update replaces all Euler steps from one call of the model to the next.

    `sigmas` (steps + 1,) of `Schedule.sigmas`; K of `called` (steps,) are true, the first included.

    With v_i and v_j the velocities of the last two calls, at noise levels s_i < s_j, the velocity
    at level s is taken to be on their line,

        v(s) = v_i + r * (v_i - v_j),    r = (s - s_i) / (s_i - s_j),

    so the Euler steps n from this call to the next sum up to

        x' - x = sum_n (s_(n+1) - s_n) * v(s_n) = A * v_i + B * v_j,
        A = sum_n (s_(n+1) - s_n) * (1 + r_n),    B = -sum_n (s_(n+1) - s_n) * r_n.

    With one velocity only, or two of one level, it counts as constant: A = s_next - s_i, B = 0.
    A call followed at once by the next has r = 0, which is Euler's step.
    """
    if len(called) == 0:  # an array as well
        return np.zeros((0, 2), np.float32)
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

    latents, velocity and the result have one shape and dtype.
    """
    return (latents.float() + dt * velocity).to(velocity.dtype)


def extrapolate(
    latents: Tensor, velocity: Tensor, previous: Tensor | None, coefficients: Tensor
) -> Tensor:
    """x + A * v + B * previous, several Euler steps in one, for `coefficients` (2,) of
    `update_coefficients`.

    All tensors have one shape and dtype; the sum is float32 and rounded once. `previous` is the
    velocity of the call before, None at the first.
    """
    moved = latents.float() + coefficients[0] * velocity.float()
    if previous is not None:
        moved = moved + coefficients[1] * previous.float()
    return moved.to(velocity.dtype)


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance: away from the negative prompt by `scale` (), in float32."""
    away = (scale * (conditional - unconditional).float()).to(conditional.dtype)
    return unconditional + away


def draw_noise(seed: int, channels: int, rows: int, columns: int) -> Tensor:
    """Packed initial noise, float32 (rows * columns, channels * 4), on the CPU.

    Drawn as (1, channels, 2 * rows, 2 * columns) from a generator of its own, so it depends only on
    seed and size: not on the device, the dtype or other requests. torch's CPU generator keeps the
    low 32 bits of a seed, so seeds that are 2^32 apart give the same noise, as in diffusers.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, 2 * rows, 2 * columns)
    return pack_patches(torch.randn(shape, generator=generator, dtype=torch.float32))[0]


def pack_patches(latents: Tensor) -> Tensor:
    """(n, channels, 2 * rows, 2 * columns) to (n, rows * columns, channels * 4): 2x2 patches."""
    n, channels, height, width = latents.shape
    patches = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (height // 2) * (width // 2), channels * 4)


def unpack_patches(latents: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack_patches`: (n, rows * columns, channels * 4) to (n, channels, 2r, 2c)."""
    n, _, features = latents.shape
    patches = latents.view(n, rows, columns, features // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, features // 4, 2 * rows, 2 * columns)
