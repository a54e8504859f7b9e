"""Runs every promised shape once before a model is ready, and checks the values that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from predictors.compute.device.placement import DAMAGED, check_finite
from predictors.diffusion.adapters import AppliedAdapters
from predictors.diffusion.editing import Size
from predictors.diffusion.inputs import Preparer
from predictors.diffusion.latents import DecodedPicture
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.model import StepShape
from predictors.diffusion.previews import (
    Projection,
    fit_projection,
    projected_levels,
    upscaled,
)
from predictors.diffusion.request import FILL, TEXT, ImageParameters, SourcePicture
from predictors.diffusion.runner import DiffusionRunner
from predictors.errors import EngineFailed
from predictors.serving.engine import Progress

WARM_PROMPTS = ("", "a red circle on a white background")
FITTED_PROMPTS = (
    "a red circle on a white background",
    "a green square on a blue background",
    "a yellow star on a black background",
    "a photo of a blue car beside an orange wall",
)
"""Prompts of the pictures that the projection for previews is fitted to; the last measures its
error."""
FITTED_STEPS = 4


@dataclass(frozen=True, slots=True)
class PromisedStep:
    """A pass that is promised: pictures of `size`, each beside one of the size `read` or (0, 0),
    `rows` of them with so many rank rows."""

    shape: StepShape
    size: Size
    read: Size
    rows: int
    rank_width: int

    def name_by(self, runner: DiffusionRunner) -> str:
        """Its name in the log and in metadata."""
        rank = f" rank {self.rank_width}" if self.rank_width else ""
        return f"{runner.name_of(self.shape)} x{self.rows}{rank}"


def promised_steps(
    runner: DiffusionRunner, limits: PictureLimits, rank_widths: Sequence[int]
) -> list[PromisedStep]:
    """Each promised size in each form at each number of rows, and of rank rows."""
    side, num_text = limits.side_multiple, limits.default_sequence_length
    found = []
    for size, read in limits.promised:
        (columns, rows), (beside, down) = ((w // side, h // side) for w, h in (size, read))
        for form in limits.tiers.forms:
            shape = StepShape(num_text, rows, columns, form, (down, beside))
            found += [
                PromisedStep(shape, size, read, width, rank_width)
                for width in range(1, runner.largest_width(form) + 1)
                for rank_width in rank_widths
            ]
    return found


def warm_all(
    runner: DiffusionRunner,
    preparer: Preparer,
    limits: PictureLimits,
    rank_widths: Sequence[int],
    progress: Progress,
) -> dict[tuple[StepShape, int], float]:
    """Run each promised size in each form at each number of rows, and of rank rows, once. Returns
    the seconds of a step without adapters, by shape and rows."""
    steps = promised_steps(runner, limits, rank_widths)
    seconds: dict[tuple[StepShape, int], float] = {}
    warm_prompts(runner, preparer, limits)
    for done, step in enumerate(steps, start=1):
        took = warm_step(runner, preparer, limits, step)
        if not step.rank_width:
            seconds[step.shape, step.rows] = took
        progress(step.name_by(runner), done, len(steps))
    for size in edit_sizes(limits):
        warm_edit(runner, preparer, limits, size)
    return seconds


def warm_prompts(runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits) -> None:
    """Encode two prompts; raise `EngineFailed` if a text encoder makes the same of both."""
    size = limits.sizes[0]
    source = _source(limits, size, read=(0, 0))
    asked = [
        ImageParameters(text, width=size[0], height=size[1], source=source) for text in WARM_PROMPTS
    ]
    works = [preparer.prepare(limits.resolve(image)) for image in asked]
    first, second = (runner.encode(work.prompts[0]) for work in works)
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        check_finite([one, other], "the embeddings of a warm-up prompt")
        if torch.equal(one, other):
            raise EngineFailed(f"the embeddings of two warm-up prompts are equal; {DAMAGED}")


def warm_step(
    runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits, step: PromisedStep
) -> float:
    """Encode a prompt and take one denoise step of such pictures with unused rank rows; with one
    row, decode too. Returns the step's seconds."""
    (width, height), form, rows = step.size, step.shape.form, step.rows
    source = _source(limits, step.size, step.read)
    parameters = ImageParameters("", width=width, height=height, source=source, seed=0)
    work = preparer.prepare(limits.resolve(replace(parameters, num_inference_steps=1)))
    where = f"warm-up {work.shape.described(limits.side_multiple)} {form} x{rows}"
    encoded = None if work.source is None else runner.encode_source(work.source)
    embedding = runner.encode(work.prompts[0])
    applied = AppliedAdapters(width=step.rank_width)
    states = [runner.start(work.plan, [embedding], form, applied, encoded) for _ in range(rows)]
    results = runner.denoise(states, rows)
    seconds = runner.seconds_per_pass(states)
    check_finite([result.latents for result in results], f"the latents of {where}")
    if rows == 1 and not step.rank_width:
        states[0].commit(results[0])
        check_picture(runner.decode(states[0]).result(), where)
    return seconds


def edit_sizes(limits: PictureLimits) -> tuple[Size, ...]:
    """The sizes for `warm_edit`. None for a model whose other passes are warmed with pictures."""
    return limits.promised_sources if limits.edits.kind == TEXT else ()


def warm_edit(
    runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits, size: Size
) -> None:
    """The picture encoder at `size`, and the step of an edit."""
    width, height = size
    source = warm_picture(width, height)
    parameters = ImageParameters("", width=width, height=height, source=source, seed=0)
    work = preparer.prepare(limits.resolve(replace(parameters, num_inference_steps=2)))
    assert work.source is not None
    encoded = runner.encode_source(work.source)
    prompts = [runner.encode(prompt) for prompt in work.prompts]
    state = runner.start(work.plan, prompts, work.form, source=encoded)
    check_finite(
        [state.latents, runner.denoise([state])[0].latents],
        f"the latents of a warm-up edit of {width}x{height}",
    )


def _source(limits: PictureLimits, size: Size, read: Size) -> SourcePicture | None:
    """A picture for a pass that needs one, else None."""
    if limits.edits.kind == FILL:
        return warm_picture(*size)
    return replace(warm_picture(*read), mask=None) if read[0] else None


def warm_picture(width: int, height: int) -> SourcePicture:
    """A picture of changing colours, its right half masked."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(255, 0, height)[:, None]
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return SourcePicture(pixels, mask)


def check_picture(picture: DecodedPicture, where: str) -> None:
    """Raise `EngineFailed` for a warm-up picture that is not finite, or of one colour."""
    if not picture.is_finite:
        raise EngineFailed(f"the pixels of {where} are not finite; {DAMAGED}")
    if (picture.pixels == picture.pixels[0, 0]).all():
        raise EngineFailed(f"the picture of {where} is of one colour; {DAMAGED}")


def warm_projection(
    runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits
) -> Projection:
    """A projection of latents to colours, fitted to pictures that are drawn for it at the first
    promised size, and its error on one more. Waits for the device."""
    drawn = [_draw_fitted(runner, preparer, limits, seed) for seed in range(len(FITTED_PROMPTS))]
    latents, pictures = zip(*drawn, strict=True)
    weights = fit_projection(latents[:-1], pictures[:-1]).to(latents[0].device)
    grid, truth = latents[-1], pictures[-1].numpy()
    levels = projected_levels(weights, grid)[:-1].view(*grid.shape[2:], 3).cpu().numpy()
    height, width, _ = truth.shape
    away = upscaled(levels, width, height).astype(np.float64) - truth
    return Projection(weights, float(np.sqrt((away**2).mean())), float(truth.std()))


def _draw_fitted(
    runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits, seed: int
) -> tuple[Tensor, Tensor]:
    """The decoder's input and its picture, uint8 (height, width, 3) on the host."""
    width, height = limits.sizes[0]
    asked = ImageParameters(
        FITTED_PROMPTS[seed],
        width=width,
        height=height,
        num_inference_steps=min(FITTED_STEPS, limits.default_steps),
        seed=seed,
        source=_source(limits, limits.sizes[0], read=(0, 0)),
    )
    work = preparer.prepare(limits.resolve(asked))
    encoded = None if work.source is None else runner.encode_source(work.source)
    state = runner.start(work.plan, [runner.encode(work.prompts[0])], work.form, source=encoded)
    while not state.is_finished:
        state.commit(runner.denoise([state], 1)[0])
    picture = torch.from_numpy(runner.decode(state).result().pixels)
    return runner.passes.unpacked(state.latents, state.shape.rows, state.shape.columns), picture
