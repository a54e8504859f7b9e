"""Previews of pictures that are still being denoised, for callers who asked for them.

A step's velocity points at clean latents: these are decoded by a projection of each latent to a
colour, or by the model's own decoder. Like a picture, a preview is only launched in its step; it is
passed on after a later one, once its copy is on the host.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from predictors import metrics
from predictors.compute.device.pacing import DeviceSpan
from predictors.compute.device.placement import Placement, to_host_async
from predictors.compute.profiling.profiler import staged
from predictors.diffusion.latents import PictureTransfer, StepResult
from predictors.diffusion.request import PartialPicture, StepTaken
from predictors.diffusion.runner import DiffusionRunner
from predictors.diffusion.scheduling import DiffusionJob, Slot, StepCharges

log = logging.getLogger(__name__)

MAX_LEVEL = 255
MAX_ERROR = 0.5
"""Largest error that `auto` accepts of a projection, in parts of the picture's own spread."""
RIDGE = 1e-4
"""Ridge term in parts of the latents' variance: channels that do not vary get small weights."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map from a latent's channels to the colour of its pixels, on the device."""

    weights: Tensor
    """float32 (channels + 1, 3), in levels of 0 to 255; the last row is the constant."""
    error: float
    """Root mean square error, in levels, on a picture that it was not fitted to."""
    spread: float
    """Standard deviation of that picture's own levels."""


def projected_levels(weights: Tensor, latents: Tensor) -> Tensor:
    """uint8 (height * width * 3 + 1,), as `DiffusionPasses.decoder`, for latents (1, channels,
    height, width) and `Projection.weights`. Launches only."""
    colours = latents[0].permute(1, 2, 0).float() @ weights[:-1] + weights[-1]
    levels = colours.clamp(0, MAX_LEVEL).round().to(torch.uint8).flatten()
    return torch.cat((levels, colours.isfinite().all().to(torch.uint8)[None]))


def upscaled(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """`pixels` (h, w, 3) resized bilinearly to (height, width, 3), without a copy if they have that
    size. Pool thread."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def fit_projection(latents: Sequence[Tensor], pictures: Sequence[Tensor]) -> Tensor:
    """`Projection.weights` by least squares over all pixels.

    `latents` are (1, channels, h, w), `pictures` uint8 (height, width, 3) with sides that are
    multiples of h and w. In float64 on the host: waits for the device.
    """
    rows = torch.cat([each[0].flatten(1).t().double().cpu() for each in latents])
    colours = torch.cat(
        [shrunk(p, x.shape[2], x.shape[3]) for p, x in zip(pictures, latents, strict=True)]
    )
    centre, mean = rows.mean(0), colours.mean(0)
    away = rows - centre
    gram = away.t() @ away
    gram += torch.eye(len(gram), dtype=gram.dtype) * (RIDGE * gram.diagonal().mean() + 1e-12)
    slopes = torch.linalg.solve(gram, away.t() @ (colours - mean))
    return torch.cat((slopes, (mean - centre @ slopes)[None])).float()


def shrunk(picture: Tensor, height: int, width: int) -> Tensor:
    """float64 (height * width, 3): means of equal blocks of a uint8 (H, W, 3) picture."""
    blocks = picture.unflatten(1, (width, -1)).unflatten(0, (height, -1))
    means: Tensor = blocks.double().mean((1, 3)).flatten(0, 1)
    return means


def clean_latents(latents: Tensor, velocity: Tensor, level: float) -> Tensor:
    """x - level * v in v's dtype: the end of a straight way from `latents` at that noise level."""
    clean: Tensor = (latents.float() - level * velocity.float()).to(velocity.dtype)
    return clean


@dataclass(frozen=True, slots=True)
class PendingPreview:
    """A preview on its way to the host."""

    slot: Slot
    index: int
    transfer: PictureTransfer
    span: DeviceSpan


class Previews:
    """Makes the previews of one engine's pictures and passes them on. Engine thread only."""

    def __init__(
        self, model: str, decoder: str, placement: Placement, charges: StepCharges
    ) -> None:
        """`decoder` is the setting `flux.preview`."""
        self.may_project = decoder == "linear" or (decoder == "auto" and placement.is_cuda)
        """True if a projection is to be fitted for `project_by`; until then, and without one, the
        model's own decoder is used."""
        self._must_project = decoder == "linear"
        self._model = model
        self._placement = placement
        self._charges = charges
        self._fitted: Projection | None = None
        self._projection: Projection | None = None
        self._pending: deque[PendingPreview] = deque()

    def project_by(self, projection: Projection) -> None:
        """Use `projection` for all previews from now on, if it is good enough or the setting asks
        for it."""
        self._fitted = projection
        if self._must_project or projection.error <= MAX_ERROR * projection.spread:
            self._projection = projection
        message = "%s: the projection for previews is off by %.1f levels on a picture of %.1f: %s"
        decoder = "used" if self._projection is not None else "the model's own decoder is used"
        log.info(message, self._model, projection.error, projection.spread, decoder)

    def launch(
        self, runner: DiffusionRunner, group: Sequence[Slot], results: Sequence[StepResult]
    ) -> list[PendingPreview]:
        """Launch the previews that follow this step, which is not committed yet."""
        found = []
        for slot, result in zip(group, results, strict=True):
            if (index := slot.due_preview) is not None:
                span = DeviceSpan(self._placement)
                with span:
                    transfer = self._decode(runner, slot, result)
                found.append(PendingPreview(slot, index, transfer, span))
        return found

    def commit(self, group: Sequence[Slot], launched: Sequence[PendingPreview]) -> None:
        """Keep the previews that `launch` made, and emit `StepTaken` for pictures whose callers
        asked for progress. The step can't fail any more."""
        self._pending.extend(launched)
        for slot in group:
            if slot.job.work.request.progress:
                slot.job.emit(StepTaken(slot.calls_done, slot.job.work.plan.num_calls))

    def deliver(self) -> None:
        """Pass on what has arrived, in the order of launching; waits for nothing."""
        pending = self._pending
        while pending and pending[0].transfer.is_done:
            preview = pending.popleft()
            picture = preview.transfer.result()
            self._observe(preview)
            if picture.is_finite:  # else the picture itself fails
                preview.slot.job.emit(PartialPicture(preview.index, picture.pixels))

    def drop(self, job: DiffusionJob) -> None:
        """Forget the previews of a job that has left."""
        if self._pending:
            self._pending = deque(each for each in self._pending if each.slot.job is not job)

    def describe(self) -> dict[str, object]:
        """The decoder of previews, and the error of a projection that was fitted."""
        shown: dict[str, object] = {"decoder": "vae" if self._projection is None else "linear"}
        if self._fitted is not None:
            error, spread = self._fitted.error, self._fitted.spread
            shown |= {"error": round(error, 1), "spread": round(spread, 1)}
        return shown

    def _observe(self, preview: PendingPreview) -> None:
        self._charges.charge_decode(preview.slot, preview.span)
        job, seconds = preview.slot.job, preview.span.seconds()
        job.add_stage("preview", seconds)
        metrics.stage_seconds.labels(self._model, "preview").observe(seconds, job.exemplar)

    @staged("preview")
    def _decode(self, runner: DiffusionRunner, slot: Slot, result: StepResult) -> PictureTransfer:
        state, work = slot.started_state, slot.job.work
        level = work.plan.levels[state.calls_done]
        clean = clean_latents(state.latents, result.velocity, level)
        if self._projection is None:
            return runner.decode(state, clean)
        grid = runner.passes.unpacked(clean, state.shape.rows, state.shape.columns)
        copy = to_host_async(projected_levels(self._projection.weights, grid))
        return PictureTransfer(copy, grid.shape[2], grid.shape[3])
