"""A picture while it is denoised, its update by one step, and its transfer to the host.

All tensors live on the device from the first step to the decoder. I counts latent patches, C a
patch's channels, T text tokens; a picture has one row, or two with true CFG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from predictors.compute.device.placement import HostCopy
from predictors.compute.low_rank import RankRows
from predictors.diffusion.model import StepShape
from predictors.diffusion.sampling import euler, extrapolate, guide
from predictors.diffusion.sources import EditState


class StepResult(NamedTuple):
    latents: Tensor
    """(I, C)."""
    velocity: Tensor
    """The velocity of that step, (I, C)."""


@dataclass(slots=True)
class DenoiseState:
    """A picture while it is denoised. Engine thread only.

    `latents`, `velocity` and `index` change, in `commit`; everything else is constant.
    """

    latents: Tensor
    """(I, C) in the model's dtype."""
    velocity: Tensor | None
    """Of the last computed step, (I, C); None before the first."""
    index: int
    """Steps computed so far."""
    context: Tensor
    """(rows, T, dim)."""
    modulation: Tensor
    """(K, rows, features), with K the steps to compute."""
    dts: Tensor
    """(K,) in the model's dtype; read only if `is_exact`."""
    coefficients: Tensor
    """(K, 2) float32; read only if not `is_exact`."""
    is_exact: bool
    """True if every step of the schedule is computed."""
    cfg_scale: Tensor
    """() float32; read only with two rows."""
    positions: Tensor
    """As `DiffusionPasses.positions` makes them, on the device."""
    shape: StepShape
    rank_rows: RankRows | None = None
    """Of its adapters, (1, n) each; None if none changes a linear of the step."""
    edit: EditState | None = None

    @property
    def rank_width(self) -> int:
        """n, or 0."""
        return 0 if self.rank_rows is None else self.rank_rows.index.shape[1]

    @property
    def num_rows(self) -> int:
        return self.context.shape[0]

    @property
    def is_finished(self) -> bool:
        return self.index == self.dts.shape[0]

    @property
    def inputs(self) -> Tensor:
        """The transformer's latents, (rows, I, C); an edit's are more."""
        latents = self.latents if self.edit is None else self.edit.widened(self.latents)
        return latents.expand(self.num_rows, -1, -1)

    def commit(self, result: StepResult) -> None:
        self.latents, self.velocity = result
        self.index += 1


class DecodedPicture(NamedTuple):
    """A finished picture on the host."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    is_finite: bool
    """False if any value was NaN or infinite before it was rounded to a level."""


class PictureTransfer:
    """A decoded picture on its way to the host, as `DiffusionPasses.decoder` made it."""

    def __init__(self, copy: HostCopy, height: int, width: int) -> None:
        self._copy = copy
        self._shape = (height, width, 3)

    @property
    def is_done(self) -> bool:
        """True if `result` would not wait."""
        return self._copy.is_done

    def result(self) -> DecodedPicture:
        """Wait for this picture alone; call it once everything else of the step is launched."""
        levels = self._copy.result().numpy()
        return DecodedPicture(levels[:-1].reshape(self._shape), bool(levels[-1]))


def next_step(state: DenoiseState, velocity: Tensor) -> StepResult:
    """The update of one picture, for the model's `velocity` (rows, I, C)."""
    toward = velocity[0]
    if state.num_rows == 2:
        toward = guide(toward, velocity[1], state.cfg_scale)
    if state.is_exact:
        latents = euler(state.latents, toward, state.dts[state.index])
    else:
        by = state.coefficients[state.index]
        latents = extrapolate(state.latents, toward, state.velocity, by)
    if state.edit is not None:
        latents = state.edit.blended(latents, state.index + 1)
    return StepResult(latents, toward)
