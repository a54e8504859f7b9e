"""A picture in the making and what is made of it: the values that stay on the device between turns,
and the copy that brings the finished one to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from predictors.compute.device.transfer import HostCopy
from predictors.diffusion.sampling import euler, extrapolate, guide

StepShape = tuple[int, int, int, str]
"""T5 tokens, patches down, patches across, form of the weights: equal to share a step."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One encoded prompt: pooled (pooled_dim,), context (T, dim) after the context embedder."""

    pooled: Tensor
    context: Tensor

    @property
    def num_bytes(self) -> int:
        """Device memory it holds."""
        return self.pooled.nbytes + self.context.nbytes


class Step(NamedTuple):
    """The values of a canvas after one more step."""

    latents: Tensor
    """(patches, channels)."""
    velocity: Tensor
    """The velocity that led there, the same shape."""


@dataclass(slots=True)
class Canvas:
    """A picture in the making, on the device. `latents`, `velocity` and `index` are the only
    state."""

    latents: Tensor
    """(patches, channels)."""
    velocity: Tensor | None
    """Of the last computed step, the same shape."""
    index: int
    """Steps computed."""
    context: Tensor
    """(rows, T, dim)."""
    modulation: Tensor
    """(computed steps, rows, modulation_dim)."""
    dts: Tensor
    """(computed steps,) in the model's dtype; read only if `is_exact`."""
    coefficients: Tensor
    """(computed steps, 2) float32; read only if not `is_exact`."""
    is_exact: bool
    """Whether every step of the schedule is computed."""
    cfg_scale: Tensor
    """() float32; read only with two rows."""
    rotary: Tensor
    shape: StepShape

    @property
    def num_rows(self) -> int:
        """Rows of a step it takes."""
        return self.context.shape[0]

    @property
    def is_finished(self) -> bool:
        """Whether only decoding is left."""
        return self.index == self.dts.shape[0]

    def commit(self, step: Step) -> None:
        """Be what `step` says."""
        self.latents, self.velocity = step
        self.index += 1


class Developed(NamedTuple):
    """A finished picture on the host."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    is_finite: bool
    """False if any value was NaN or infinite before it was rounded to a level."""


class Developing:
    """A finished picture on its way to the host, as `decoder.develop_checked` made it."""

    def __init__(self, copy: HostCopy, height: int, width: int) -> None:
        self._copy = copy
        self._shape = (height, width, 3)

    def result(self) -> Developed:
        """Waits for this picture alone. Call it once everything else of this turn is launched."""
        levels = self._copy.result().numpy()
        return Developed(levels[:-1].reshape(self._shape), bool(levels[-1]))


def advanced(canvas: Canvas, velocity: Tensor) -> Step:
    """The next step, for the model's `velocity` (rows, patches, channels)."""
    toward = velocity[0]
    if canvas.num_rows == 2:
        toward = guide(toward, velocity[1], canvas.cfg_scale)
    if canvas.is_exact:
        return Step(euler(canvas.latents, toward, canvas.dts[canvas.index]), toward)
    by = canvas.coefficients[canvas.index]
    return Step(extrapolate(canvas.latents, toward, canvas.velocity, by), toward)
