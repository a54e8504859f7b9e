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
    """The result of one denoise step of one picture, not yet committed."""

    latents: Tensor
    """(I, C)."""
    velocity: Tensor
    """The velocity that led to them, (I, C)."""


@dataclass(slots=True)
class DenoiseState:
    """A picture while it is denoised. Engine thread only.

    `commit` changes `latents`, `velocity` and `calls_done`; everything else is constant. K counts
    the steps that call the model, as in `DenoisePlan`.
    """

    latents: Tensor
    """(I, C) in the model's dtype."""
    velocity: Tensor | None
    """The velocity of the last call of the model, (I, C); None before the first."""
    calls_done: int
    """Calls of the model so far."""
    context: Tensor
    """(rows, T, dim)."""
    modulation: Tensor
    """(K, rows, features)."""
    dts: Tensor
    """(K,) in the model's dtype; read only if `is_exact`."""
    coefficients: Tensor
    """(K, 2) float32; read only if not `is_exact`."""
    is_exact: bool
    """True if every step of the schedule calls the model."""
    cfg_scale: Tensor
    """() float32; read only with two rows."""
    positions: Tensor
    """As `DiffusionPasses.positions` makes them, on the device."""
    shape: StepShape
    rank_rows: RankRows | None = None
    """The rank rows of its adapters, (1, n) each; None if none changes a linear of the step."""
    edit: EditState | None = None

    @property
    def rank_width(self) -> int:
        """n of `rank_rows`; 0 without."""
        return 0 if self.rank_rows is None else self.rank_rows.index.shape[1]

    @property
    def num_rows(self) -> int:
        return self.context.shape[0]

    @property
    def is_finished(self) -> bool:
        return self.calls_done == self.dts.shape[0]

    @property
    def inputs(self) -> Tensor:
        """The transformer's latents, (rows, I, C); wider or longer for an edit, as
        `EditState.widened`."""
        latents = self.latents if self.edit is None else self.edit.widened(self.latents)
        return latents.expand(self.num_rows, -1, -1)

    def commit(self, result: StepResult) -> None:
        self.latents, self.velocity = result
        self.calls_done += 1


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
        """Wait for this picture's copy, not for work launched after it. Call it once the rest of
        the step is launched."""
        levels = self._copy.result().numpy()
        return DecodedPicture(levels[:-1].reshape(self._shape), bool(levels[-1]))


def next_step(state: DenoiseState, velocity: Tensor) -> StepResult:
    """The update of one picture, for the model's `velocity` (rows, I, C)."""
    toward = velocity[0]
    if state.num_rows == 2:
        toward = guide(toward, velocity[1], state.cfg_scale)
    if state.is_exact:
        latents = euler(state.latents, toward, state.dts[state.calls_done])
    else:
        by = state.coefficients[state.calls_done]
        latents = extrapolate(state.latents, toward, state.velocity, by)
    if state.edit is not None:
        latents = state.edit.blended(latents, state.calls_done + 1)
    return StepResult(latents, toward)
