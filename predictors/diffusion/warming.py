"""The first run of every promised shape, and what it must show before a model is ready."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from predictors.compute.device.placement import DAMAGED, check_finite
from predictors.diffusion.adapters import AppliedAdapters
from predictors.diffusion.inputs import Preparer
from predictors.diffusion.latents import DecodedPicture
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.model import StepShape
from predictors.diffusion.request import ImageParameters
from predictors.diffusion.runner import DiffusionRunner
from predictors.errors import EngineFailed
from predictors.serving.engine import Progress

WARM_PROMPTS = ("", "a red circle on a white background")


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
        (size, form, rows, rank_width)
        for size in limits.sizes
        for form in limits.tiers.forms
        for rows in range(1, runner.largest_width(form) + 1)
        for rank_width in rank_widths
    ]
    seconds: dict[tuple[StepShape, int], float] = {}
    warm_prompts(runner, preparer, limits)
    for done, (size, form, rows, rank_width) in enumerate(shapes, start=1):
        shape, took = warm_shape(runner, preparer, limits, size, form, rows, rank_width)
        name = f"{size[0]}x{size[1]} {form} x{rows}"
        if rank_width:
            name += f" rank {rank_width}"
        else:
            seconds[shape, rows] = took
        progress(name, done, len(shapes))
    return seconds


def warm_prompts(runner: DiffusionRunner, preparer: Preparer, limits: PictureLimits) -> None:
    """Encode two prompts; raise `EngineFailed` if a text encoder makes the same of both."""
    size = limits.sizes[0]
    asked = [ImageParameters(text, width=size[0], height=size[1]) for text in WARM_PROMPTS]
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
    size: tuple[int, int],
    form: str,
    rows: int,
    rank_width: int = 0,
) -> tuple[StepShape, float]:
    """One prompt, one denoise step of `rows` pictures with so many unused rank rows, and with one
    row a decode; the shape, and the step's seconds."""
    width, height = size
    parameters = ImageParameters("", width=width, height=height, num_inference_steps=1, seed=0)
    work = preparer.prepare(limits.request(parameters))
    embedding = runner.encode(work.prompts[0])
    applied = AppliedAdapters(width=rank_width)
    states = [runner.start(work.plan, [embedding], form, applied) for _ in range(rows)]
    results = runner.denoise(states, rows)
    seconds = runner.seconds_per_pass(states)
    where = f"warm-up {width}x{height} {form} x{rows}"
    check_finite([result.latents for result in results], f"the latents of {where}")
    if rows == 1 and not rank_width:
        states[0].commit(results[0])
        check_picture(runner.decode(states[0]).result(), where)
    return states[0].shape, seconds


def check_picture(picture: DecodedPicture, where: str) -> None:
    """Raise `EngineFailed` for a warm-up picture that is not finite, or of one colour."""
    if not picture.is_finite:
        raise EngineFailed(f"the pixels of {where} are not finite; {DAMAGED}")
    if (picture.pixels == picture.pixels[0, 0]).all():
        raise EngineFailed(f"the picture of {where} is of one colour; {DAMAGED}")
