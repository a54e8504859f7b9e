"""The first run of every promised shape, and what it must show before a model is ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
"""Of the pictures that previews are fitted to, but for the last, which the fit is tried on."""
FITTED_STEPS = 4


def warm_all(
    runner: DiffusionRunner,
    preparer: Preparer,
    limits: PictureLimits,
    rank_widths: Sequence[int],
    progress: Progress,
) -> dict[tuple[StepShape, int], float]:
    """Run each promised size in each form at each number of rows, and of rank rows, once; the
    seconds of a step by its shape and rows, without adapters."""
    shapes = [
        (*sizes, form, rows, rank_width)
        for sizes in limits.promised
        for form in limits.tiers.forms
        for rows in range(1, runner.largest_width(form) + 1)
        for rank_width in rank_widths
    ]
    seconds: dict[tuple[StepShape, int], float] = {}
    warm_prompts(runner, preparer, limits)
    for done, (size, read, form, rows, rank_width) in enumerate(shapes, start=1):
        shape, took = warm_shape(runner, preparer, limits, size, read, form, rows, rank_width)
        name = f"{runner.name_of(shape)} x{rows}"
        if rank_width:
            name += f" rank {rank_width}"
        else:
            seconds[shape, rows] = took
        progress(name, done, len(shapes))
    warm_encoder(runner, preparer, limits)
    return seconds


def warm_prompts(runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits) -> None:
    """Encode two prompts; raise `EngineFailed` if a text encoder makes the same of both."""
    size = limits.sizes[0]
    source = _source(limits, size, read=(0, 0))
    asked = [
        ImageParameters(text, width=size[0], height=size[1], source=source) for text in WARM_PROMPTS
    ]
    works = [preparer.prepare(limits.request(image)) for image in asked]
    first, second = (runner.encode(work.prompts[0]) for work in works)
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        check_finite([one, other], "the embeddings of a warm-up prompt")
        if torch.equal(one, other):
            raise EngineFailed(f"the embeddings of two warm-up prompts are equal; {DAMAGED}")


def warm_shape(
    runner: DiffusionRunner,
    preparer: Preparer,
    limits: PictureLimits,
    size: Size,
    read: Size,
    form: str,
    rows: int,
    rank_width: int = 0,
) -> tuple[StepShape, float]:
    """One prompt, one denoise step of `rows` pictures of `size` with so many unused rank rows, and
    with one row a decode; the shape, and the step's seconds. They read another picture of the size
    `read`, or none for (0, 0)."""
    width, height = size
    source = _source(limits, size, read)
    parameters = ImageParameters("", width=width, height=height, source=source, seed=0)
    work = preparer.prepare(limits.request(replace(parameters, num_inference_steps=1)))
    where = f"warm-up {work.shape.described(limits.side_multiple)} {form} x{rows}"
    encoded = None if work.source is None else runner.encode_source(work.source)
    embedding = runner.encode(work.prompts[0])
    applied = AppliedAdapters(width=rank_width)
    states = [runner.start(work.plan, [embedding], form, applied, encoded) for _ in range(rows)]
    results = runner.denoise(states, rows)
    seconds = runner.seconds_per_pass(states)
    check_finite([result.latents for result in results], f"the latents of {where}")
    if rows == 1 and not rank_width:
        states[0].commit(results[0])
        check_picture(runner.decode(states[0]).result(), where)
    return states[0].shape, seconds


def warm_encoder(runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits) -> None:
    """The picture encoder at each promised size, if it is loaded, and the step of an edit for a
    model that also draws without a picture."""
    if limits.edits.kind != TEXT:
        return  # its passes were warmed with pictures
    for width, height in limits.promised_sources:
        source = warm_picture(width, height)
        parameters = ImageParameters("", width=width, height=height, source=source, seed=0)
        work = preparer.prepare(limits.request(replace(parameters, num_inference_steps=2)))
        assert work.source is not None
        encoded = runner.encode_source(work.source)
        prompts = [runner.encode(prompt) for prompt in work.prompts]
        state = runner.start(work.plan, prompts, work.form, source=encoded)
        check_finite(
            [state.latents, runner.denoise([state])[0].latents],
            f"the latents of a warm-up edit of {width}x{height}",
        )


def _source(limits: PictureLimits, size: Size, read: Size) -> SourcePicture | None:
    """A picture for a pass that can't do without."""
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
    drawn = [_drawn(runner, preparer, limits, seed) for seed in range(len(FITTED_PROMPTS))]
    latents, pictures = zip(*drawn, strict=True)
    weights = fit_projection(latents[:-1], pictures[:-1]).to(latents[0].device)
    grid, truth = latents[-1], pictures[-1].numpy()
    levels = projected_levels(weights, grid)[:-1].view(*grid.shape[2:], 3).cpu().numpy()
    height, width, _ = truth.shape
    away = upscaled(levels, width, height).astype(np.float64) - truth
    return Projection(weights, float(np.sqrt((away**2).mean())), float(truth.std()))


def _drawn(
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
    work = preparer.prepare(limits.request(asked))
    encoded = None if work.source is None else runner.encode_source(work.source)
    state = runner.start(work.plan, [runner.encode(work.prompts[0])], work.form, source=encoded)
    while not state.is_finished:
        state.commit(runner.denoise([state], 1)[0])
    picture = torch.from_numpy(runner.decode(state).result().pixels)
    return runner.passes.unpacked(state.latents, state.shape.rows, state.shape.columns), picture
