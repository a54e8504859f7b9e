"""The FLUX room's engine: slots, turns, and when a picture is finished. Knows jobs and canvases;
knows no wire format and nobody who waits.

A turn is at most one VAE decode (of the picture that finished first), launched before one denoise
step of pictures of one shape, of which at most one is new unless all are. Pictures join and leave
at turns; on a GPU one turn is launched ahead. A turn that raises has advanced nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from predictors import metrics
from predictors.compute.caches import ByteBoundedCache
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.compute.device.finite import DAMAGED, check_finite
from predictors.compute.device.pacing import Done, Pace
from predictors.compute.device.placement import Placement, is_device_lost
from predictors.diffusion.inputs import FluxWork, Preparer, Prompt, PromptKey
from predictors.diffusion.latents import Developed, Embedding, Step, StepShape
from predictors.diffusion.request import ImageResult, Offer, Wish
from predictors.diffusion.runner import Runner
from predictors.diffusion.scheduling import choose, widths
from predictors.diffusion.slots import (
    FluxJob,
    Slot,
    canvas_of,
    describe_slot,
    resolution_of,
    without_a_crowd,
)
from predictors.errors import EngineFailed, StepFailed
from predictors.models.flux.config import Facts
from predictors.models.flux.weights import Parts, load_parts
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.settings import FluxSettings

log = logging.getLogger(__name__)


class FluxEngine:
    """Implements `serving.Engine[FluxWork, ImageResult]` for one checkpoint."""

    def __init__(
        self,
        model: str,
        facts: Facts,
        offer: Offer,
        preparer: Preparer,
        settings: FluxSettings,
        placement: Placement,
    ) -> None:
        self._model = model
        self._facts = facts
        self._offer = offer
        self._preparer = preparer
        self._settings = settings
        self._placement = placement
        # a guided picture takes two rows, also where one slot is all there is
        self._max_rows = max(2, settings.slots)
        self._slots: dict[FluxJob, Slot] = {}
        self._runner: Runner | None = None
        self._guard = RecompileGuard(model)
        self._pace = Pace(placement)
        compiled_for = {"checkpoint": facts, "settings": settings, "dtype": placement.precision}
        bundle = Bundle(placement.cache, compiled_for)
        self._start = Start(model, bundle, has_kernels=placement.is_cuda)
        self._prompts: ByteBoundedCache[PromptKey, Embedding] = ByteBoundedCache(
            settings.prompt_cache_bytes, lambda e: e.num_bytes, self._count_cache
        )

    # -- what the host asks from any thread ------------------------------------------------------
    @property
    def slots(self) -> int:
        """Pictures in the making at once."""
        return self._settings.slots

    @property
    def busy(self) -> bool:
        """Whether any picture is in the making."""
        return bool(self._slots)

    @property
    def active(self) -> Sequence[FluxJob]:
        """Jobs in order of admission."""
        return list(self._slots)

    def validate(self, work: FluxWork) -> None:
        """Raise `InvalidRequest` for a shape that is never served."""
        request = work.request
        self._offer.check_sides(request.width, request.height)
        self._offer.check_promise(request.width, request.height, request.max_sequence_length)

    def describe(self) -> Mapping[str, object]:
        """See `serving.engine.Describes`."""
        runner, prompts, slots = self._runner, self._prompts, list(self._slots.values())
        cached = {"entries": len(prompts), "bytes": prompts.num_bytes}
        sizes = [f"{width}x{height}" for width, height in self._offer.sizes]
        return {
            "running": {slot.job.id: describe_slot(slot) for slot in slots},
            "caches": {"prompt_embedding": cached},
            "warm_shapes": sizes if self._start.kind else [],
            "widths": {} if runner is None else self._describe_widths(runner),
            "attention": None if runner is None else runner.attention,
            "recompilations_after_ready": self._guard.count,
            "captures_after_ready": 0 if runner is None else runner.captures_after_ready,
            "start": self._start.kind,
        }

    def _describe_widths(self, runner: Runner) -> dict[str, int]:
        side = self._facts.patch_pixels
        return {
            f"{columns * side}x{rows * side} {form}": width
            for (_, rows, columns, form), width in list(runner.widths.items())
        }

    # -- life ------------------------------------------------------------------------------------
    def load(self) -> None:
        """Weights onto the device; raises `EngineFailed` for a checkpoint that does not fit."""
        self._start.begin()
        self.take(load_parts(self._facts, self._placement, self._offer.tiers.forms))

    def take(self, parts: Parts) -> None:
        """Serve with these modules. What `load` ends with; a benchmark brings its own."""
        self._start.begin()
        offer = self._offer
        self._runner = Runner(
            self._model,
            self._facts,
            parts,
            self._placement,
            offer.sizes,
            offer.default_sequence_length,
            self._max_rows,
            self._settings.fp8_attention,
        )

    def warm(self, progress: Progress) -> None:
        """Each promised size in each form at each number of rows once, through the very passes
        that serve; then the widths are settled by what these took."""
        runner = self._ready_runner()
        shapes = [
            (size, form, rows)
            for size in self._offer.sizes
            for form in self._offer.tiers.forms
            for rows in range(1, runner.largest_width(form) + 1)
        ]
        seconds: dict[tuple[StepShape, int], float] = {}
        with torch.inference_mode():
            for done, ((width, height), form, rows) in enumerate(shapes, start=1):
                shape, took = self._rehearse(width, height, form, rows)
                seconds[shape, rows] = took
                progress(f"{width}x{height} {form} x{rows}", done, len(shapes))
        runner.seal(widths(seconds))
        self._start.end()
        self._guard.seal()

    def close(self) -> None:
        """Forget modules and cached prompts; the device's memory goes back to the driver."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._slots.clear()
        self._prompts = ByteBoundedCache(0, lambda e: e.num_bytes)
        if self._placement.is_cuda:
            torch.cuda.empty_cache()

    def _rehearse(self, width: int, height: int, form: str, rows: int) -> tuple[StepShape, float]:
        # one step and one picture: the text encoders, `rows` rows of denoising, the decoder
        wish = Wish("", width=width, height=height, num_inference_steps=1, seed=0)
        work = self._preparer.prepare(self._offer.request(wish))
        runner = self._ready_runner()
        prompt = work.prompts[0]
        embedding = runner.encode(prompt.clip_ids, prompt.t5_ids)
        canvases = [runner.begin(work.course, [embedding], form) for _ in range(rows)]
        steps = runner.denoise(canvases, rows)
        seconds = runner.seconds_per_pass(canvases)
        shape = canvases[0].shape
        what = f"warm-up {width}x{height} {form} x{rows}"
        check_finite([step.latents for step in steps], f"the latents of {what}")
        if rows == 1:
            canvases[0].commit(steps[0])
            check_picture(runner.decode(canvases[0]).result(), what)
        return shape, seconds

    # -- turns -----------------------------------------------------------------------------------
    def admit(self, job: FluxJob) -> bool:
        """A slot, if one is free. Its memory is bounded by slots, sizes and steps, never more."""
        if len(self._slots) >= self.slots:
            return False
        self._slots[job] = Slot(job)
        return True

    def evict(self, job: FluxJob) -> None:
        """Drop the job's slot and tensors."""
        self._slots.pop(job, None)

    def step(self, jobs: Sequence[FluxJob]) -> None:
        """One turn for some of `jobs`; see the module's first paragraph for what a turn is."""
        mine = [self._slots[job] for job in jobs if job in self._slots]
        finished = next((slot for slot in mine if slot.is_finished), None)
        waiting = without_a_crowd([slot for slot in mine if not slot.is_finished])
        runner, limit = self._ready_runner(), self._settings.age_limit_s
        width_of = {slot.job.work.shape: runner.width(slot.job.work.shape) for slot in waiting}
        picked = choose([slot.pending for slot in waiting], width_of.__getitem__, limit)
        started = time.monotonic()
        with torch.inference_mode(), _device_errors():
            self._take_turn(finished, [waiting[i] for i in picked])
        took = time.monotonic() - started
        for i, slot in enumerate(waiting):
            slot.waited_s += 0.0 if i in picked else took
        self._guard.check()

    def _take_turn(self, finished: Slot | None, group: Sequence[Slot]) -> None:
        runner = self._ready_runner()
        self._count_done(self._pace.wait())
        started = time.monotonic()
        picture = None if finished is None else runner.decode(canvas_of(finished))
        for slot in group:
            self._begin(slot, runner)
        steps: list[Step] = []
        if group:
            with self._pace.step(resolution_of(group[0])):
                steps = runner.denoise([canvas_of(slot) for slot in group])
        # the wait is for the picture's own copy: steps launched after it go on meanwhile
        developed = None if picture is None else picture.result()
        # -- nothing below can raise: the turn counts from here ----------------------------------
        for slot, step in zip(group, steps, strict=True):
            canvas_of(slot).commit(step)
        self._count_steps(group)
        if finished is not None and developed is not None:
            self._observe_stage(finished.job, "vae_decode", time.monotonic() - started)
            if developed.is_finite:
                self._hand_over(finished, developed)
            else:
                self._fail(finished)

    def _begin(self, slot: Slot, runner: Runner) -> None:
        """Encode the prompts of a slot's first turn. Changes nothing that a retry would notice."""
        if slot.canvas is not None:
            return
        slot.started_at = time.monotonic()
        work = slot.job.work
        prompts = [self._embed(slot.job, prompt, runner) for prompt in work.prompts]
        slot.canvas = runner.begin(work.course, prompts, work.shape[3])

    def _embed(self, job: FluxJob, prompt: Prompt, runner: Runner) -> Embedding:
        embedding = self._prompts.get(prompt.key)
        if embedding is None:
            started = time.monotonic()
            embedding = runner.encode(prompt.clip_ids, prompt.t5_ids)
            self._prompts.put(prompt.key, embedding)
            self._observe_stage(job, "text_encode", time.monotonic() - started)
        return embedding

    def _hand_over(self, slot: Slot, developed: Developed) -> None:
        job, request = slot.job, slot.job.work.request
        metrics.images_total.labels(self._model, resolution_of(slot), request.tier).inc()
        metrics.image_pixels.labels(self._model).observe(request.width * request.height)
        metrics.inference_steps.labels(self._model).observe(request.num_inference_steps)
        seconds = job.clock() - job.submitted_at  # told before the caller can look
        metrics.ttfi_seconds.labels(self._model).observe(seconds, job.exemplar)
        self.evict(job)
        job.emit(ImageResult(developed.pixels, job.work.prompts[0].num_read))
        job.finish()

    def _fail(self, slot: Slot) -> None:
        """The picture holds NaN or infinities: answered as a failure, and its prompts are encoded
        anew when they come again."""
        job = slot.job
        log.error("%s: the picture of job %s is not finite", self._model, job.id)
        for prompt in job.work.prompts:
            self._prompts.drop(prompt.key)
        self.evict(job)
        job.fail(StepFailed("the picture's values are not finite; others were not affected"))

    def _ready_runner(self) -> Runner:
        if self._runner is None:
            raise EngineFailed("the engine was used before load or after close")
        return self._runner

    # -- counting --------------------------------------------------------------------------------
    def _count_steps(self, group: Sequence[Slot]) -> None:
        if group:
            metrics.denoise_steps_total.labels(self._model).inc(len(group))
            metrics.batch_size.labels(self._model).observe(len(group))
        for slot in group:
            if slot.is_finished:
                steps = slot.job.work.request.num_inference_steps
                seconds = time.monotonic() - slot.started_at
                self._observe_stage(slot.job, "denoise", seconds, steps=steps)

    def _count_done(self, steps: Sequence[Done]) -> None:
        for resolution, seconds in steps:
            metrics.denoise_step_seconds.labels(self._model, resolution).observe(seconds)

    def _count_cache(self, result: str) -> None:
        metrics.cache_requests_total.labels(self._model, "prompt_embedding", result).inc()

    def _observe_stage(self, job: FluxJob, stage: str, seconds: float, **facts: int) -> None:
        job.add_stage(stage, seconds, **facts)
        metrics.stage_seconds.labels(self._model, stage).observe(seconds, job.exemplar)


def check_picture(developed: Developed, what: str) -> None:
    """Raise `EngineFailed` for a warm-up picture that nobody could have asked for."""
    if not developed.is_finite:
        raise EngineFailed(f"the pixels of {what} are not finite; {DAMAGED}")
    if developed.pixels.min() == developed.pixels.max():
        raise EngineFailed(f"the picture of {what} is of one colour; {DAMAGED}")


@contextmanager
def _device_errors() -> Iterator[None]:
    """A lost device context is told apart from a job that failed."""
    try:
        yield
    except RuntimeError as error:
        if is_device_lost(error):
            raise StickyDeviceError("the CUDA context is lost") from error
        raise
