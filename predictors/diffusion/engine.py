"""The diffusion engine: slots, steps, and when a picture is finished.

A step decodes at most one picture, the first that finished, and then takes one denoise step of
pictures of one shape. At most one of these is new unless all are, so that the others wait for one
picture's text encoders at most. Pictures come and go between steps; a GPU is one step behind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Mapping, Sequence

import torch

from predictors import metrics
from predictors.compute.caches import ByteBoundedCache
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.compute.device.pacing import DeviceSpan, FinishedStep, StepPacer
from predictors.compute.device.placement import Placement
from predictors.compute.device.sharing import PictureTurns, SharedCard
from predictors.diffusion.active_adapters import AdaptableEngine, make_adapters
from predictors.diffusion.counting import PictureCounts
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.latents import DecodedPicture, StepResult
from predictors.diffusion.later_shapes import LaterShapes, passes_of
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.model import DiffusionModel, Embedding, LoadOptions, Prompt
from predictors.diffusion.previews import PendingPreview, Previews
from predictors.diffusion.request import ImageResult
from predictors.diffusion.runner import DiffusionRunner, device_errors
from predictors.diffusion.scheduling import (
    DenoiseStep,
    DiffusionJob,
    Slot,
    StepCharges,
    best_widths,
    pick_slots,
    with_at_most_one_new,
)
from predictors.diffusion.sources import EncodedSource
from predictors.diffusion.warming import warm_all, warm_projection
from predictors.errors import EngineFailed, StepFailed
from predictors.serving.engine import Progress
from predictors.serving.turns import SlotHolders, num_spare
from predictors.serving.warm_plan import WarmPlan
from predictors.settings import FluxSettings

log = logging.getLogger(__name__)

EmbeddingKey = tuple[Hashable, ...]
"""A prompt's key, and the digest and scale of each adapter that changes its encoding."""


class DiffusionEngine(AdaptableEngine):
    """Implements `serving.Engine[DiffusionWork, PictureChunk]` for one checkpoint."""

    def __init__(
        self,
        name: str,
        model: DiffusionModel,
        limits: PictureLimits,
        preparer: Preparer,
        settings: FluxSettings,
        placement: Placement,
    ) -> None:
        self._name = name
        self._model = model
        self._limits = limits
        self._preparer = preparer
        self._settings = settings
        self._placement = placement
        # a guided picture takes two rows, also in an engine of one slot
        self._max_rows = max(2, settings.slots)
        self._slots: dict[DiffusionJob, Slot] = {}
        self._holders = SlotHolders()
        self._counts = PictureCounts(name)
        self._charges = StepCharges(self._holders)
        self._runner: DiffusionRunner | None = None
        self._previews = Previews(name, settings.preview, placement, self._charges)
        self._guard = RecompileGuard(name)
        self._pacer: StepPacer[DenoiseStep] = StepPacer(placement)
        compiled_for = {
            "checkpoint": model.config,
            "settings": settings.of_drawing,
            "dtype": placement.precision,
        }
        bundle = Bundle(placement.cache, compiled_for)
        self._start = Start(name, bundle, has_kernels=placement.is_cuda)
        self._prompts: ByteBoundedCache[EmbeddingKey, Embedding] = ByteBoundedCache(
            settings.prompt_cache_bytes, lambda e: e.num_bytes, self._counts.count_lookup
        )
        self.adapters = make_adapters(model, settings, placement)
        self._turns = PictureTurns()
        self.plan: WarmPlan | None = None
        """The shapes that `warm` has left for later. Any thread."""

    def share(self, card: SharedCard) -> None:
        """Take turns with engines of tokens on `card`. Before `load`."""
        self._turns = PictureTurns(card)

    # -- any thread ------------------------------------------------------------------------------
    @property
    def slots(self) -> int:
        return self._settings.slots

    @property
    def spare_slots(self) -> int:
        return num_spare(self._settings.slots)

    @property
    def busy(self) -> bool:
        return bool(self._slots)

    @property
    def active(self) -> Sequence[DiffusionJob]:
        return list(self._slots)

    def validate(self, work: DiffusionWork) -> None:
        """Check that the adapters are known and that no needed shape of the plan has failed.
        `PictureLimits.resolve` has checked all else."""
        if work.request.loras:
            self.adapters.check(work.request.loras)
        if self.plan is not None:
            self.plan.check(passes_of(work, self.adapters.widths))

    def describe(self) -> Mapping[str, object]:
        runner, prompts, slots = self._runner, self._prompts, list(self._slots.values())
        cached = {"entries": len(prompts), "bytes": prompts.num_bytes}
        sizes = [f"{width}x{height}" for width, height in self._limits.sizes]
        is_warming = self.plan is not None and not self.plan.is_over
        return {
            "running": {slot.job.id: slot.describe() for slot in slots},
            "caches": {"prompt_embedding": cached},
            "adapters": self.adapters.describe(),
            "warm_shapes": sizes if self._start.kind and not is_warming else [],
            "widths": {} if runner is None else runner.describe_widths(),
            "attention": None if runner is None else runner.passes.attention,
            "previews": self._previews.describe(),
            "recompilations_after_ready": self._guard.count,
            "captures_after_ready": 0 if runner is None else runner.captures_after_ready,
            "start": self._start.kind,
            "plan": None if self.plan is None else self.plan.describe(),
        }

    # -- life ------------------------------------------------------------------------------------
    def load(self) -> None:
        """Weights onto the device; raises `EngineFailed` for a checkpoint that does not fit."""
        self._start.begin()
        self._turns.use_stream()
        own = self._settings
        options = LoadOptions(
            self._limits.tiers.forms,
            self._limits.longest_sequence,
            own.fp8_attention,
            fp8_conditioning=own.conditioning_precision == "fp8",
            rank_rows=self.adapters.num_rows,
            encodes=self._limits.edits.is_loaded,
        )
        passes = self._model.load(self._name, self._placement, options)
        self._runner = DiffusionRunner(
            self._name, passes, self._placement, self._limits, self._max_rows, self._turns
        )
        self.adapters.open(passes)

    @property
    def runner(self) -> DiffusionRunner:
        """The loaded passes; raises `EngineFailed` before `load` and after `close`."""
        if self._runner is None:
            raise EngineFailed("the engine was used before load or after close")
        return self._runner

    def warm(self, progress: Progress) -> None:
        """Run each promised size in each form at each number of rows once, as traffic will; then
        choose the widths by the times these took. `flux.warm` may leave most to `plan`."""
        runner = self.runner
        if self._settings.warm == "minimal":
            self._warm_first(progress)
            return
        with torch.inference_mode():
            seconds = warm_all(runner, self._preparer, self._limits, self.adapters.widths, progress)
            if self._previews.may_project:
                self._previews.project_by(warm_projection(runner, self._preparer, self._limits))
        self._charges.set_expected(seconds)
        runner.seal(best_widths(seconds), seconds)
        self._start.end()
        self._guard.seal()

    def _warm_first(self, progress: Progress) -> None:
        later = LaterShapes(
            self.runner, self._preparer, self._limits, self.adapters.widths,
            self._previews, self._start, self._guard,
        )  # fmt: skip
        with torch.inference_mode():
            self._charges.set_expected(later.warm_first())
        self._start.end()
        self._guard.seal()
        self.plan = later.plan(self._name, progress)

    def close(self) -> None:
        """Forget weights and cached prompts; the device's memory goes back to the driver."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._slots.clear()
        self._turns.set_drawing(is_drawing=False)
        self._holders.clear()
        self._prompts = ByteBoundedCache(0, lambda e: e.num_bytes)
        self.adapters.close()
        if self._placement.is_cuda:
            torch.cuda.empty_cache()

    # -- steps -----------------------------------------------------------------------------------
    def admit(self, job: DiffusionJob) -> bool:
        """Give the job a slot, a spare one only if its caller has less than its share. Warms what
        `plan` has left of the shapes that it needs; raises `ShapeNotWarm` if that fails. Sizes and
        steps bound its memory."""
        if not self._holders.has_slot_for(job.account, self.slots, self.spare_slots):
            return False
        if self.plan is not None:
            self.plan.warm_for(passes_of(job.work, self.adapters.widths))
        self._slots[job] = Slot(job)
        self._holders.add(job)
        self._turns.set_drawing(is_drawing=True)
        return True

    def evict(self, job: DiffusionJob) -> None:
        if self._slots.pop(job, None) is not None:
            self._holders.remove(job)
            self._previews.drop(job)
            self._turns.set_drawing(is_drawing=bool(self._slots))

    def step(self, jobs: Sequence[DiffusionJob]) -> None:
        """One step for some of `jobs`; the module's docstring says what a step is."""
        started = time.monotonic()
        with torch.inference_mode(), device_errors():
            admitted = [self._slots[job] for job in jobs if job in self._slots]
            slots = self._holders.in_turn(admitted, lambda slot: slot.job.account)
            finished = next((slot for slot in slots if slot.is_finished), None)
            waiting = with_at_most_one_new([slot for slot in slots if not slot.is_finished])
            # on a CPU a denoise step of other callers would delay a picture that is finished
            is_apart = finished is not None and self._holders.is_shared
            group = self._pick(waiting) if self._placement.is_cuda or not is_apart else []
            self._run_step(finished, group)
            # last: pictures that are submitted during the wait can be picked for the next step
            self._count_done(self._pacer.wait())
            self._previews.deliver()
        took = time.monotonic() - started
        for slot in waiting:
            slot.waited_s += 0.0 if slot in group else took
        self._guard.check()

    def _pick(self, waiting: Sequence[Slot]) -> list[Slot]:
        width, seconds = self.runner.width, self.runner.seconds
        return pick_slots(waiting, self._holders, width, self._settings.age_limit_s, seconds)

    def _run_step(self, finished: Slot | None, group: Sequence[Slot]) -> None:
        """Decode `finished`, take a denoise step of `group`, and then change the slots. If it
        raises, no picture has advanced."""
        runner, started = self.runner, time.monotonic()
        transfer, span = None, DeviceSpan(self._placement)
        if finished is not None:
            with self._turns.piece(), span:
                transfer = runner.decode(finished.started_state)
        encoded = [(slot, spent) for slot in group if (spent := self._start_picture(slot, runner))]
        group = [slot for slot in group if not slot.is_finished]  # edits of strength 0
        results: list[StepResult] = []
        previews: list[PendingPreview] = []
        if group:
            step = self._charges.make_step(group, encoded)
            with self._pacer.step(step):
                results = runner.denoise([slot.started_state for slot in group])
            previews = self._previews.launch(runner, group, results)
        # the wait is for the picture's own copy: steps launched after it go on meanwhile
        picture = None if transfer is None else transfer.result()
        # -- nothing below can raise: from here on the step counts -------------------------------
        for slot, result in zip(group, results, strict=True):
            slot.started_state.commit(result)
        self._previews.commit(group, previews)
        self._counts.count_step(group)
        if group:
            self._charges.charge_launched(step)
        if finished is not None and picture is not None:
            self._charges.charge_decode(finished, span)
            self._counts.add_stage(finished.job, "vae_decode", time.monotonic() - started)
            self._previews.deliver()
            if picture.is_finite:
                self._finish(finished, picture)
            else:
                self._fail(finished)

    def _start_picture(self, slot: Slot, runner: DiffusionRunner) -> DeviceSpan | None:
        """Encode prompts and picture in a slot's first step; returns the time on the device, and
        None if they are encoded already."""
        if slot.state is not None:
            return None
        slot.started_at = time.monotonic()
        work = slot.job.work
        span = DeviceSpan(self._placement)
        with self._turns.piece(), span:
            if work.request.loras:
                slot.applied = self.adapters.applied(work.request.loras)
            texts = work.prompts if work.plan.num_calls else ()
            prompts = [self._embed(slot, prompt) for prompt in texts]
            source = self._encode_source(slot.job, runner)
            slot.state = runner.start(work.plan, prompts, work.form, slot.applied, source)
        slot.encoding = span
        return span

    def _encode_source(self, job: DiffusionJob, runner: DiffusionRunner) -> EncodedSource | None:
        if job.work.source is None:
            return None
        started = time.monotonic()
        encoded = runner.encode_source(job.work.source)
        self._counts.add_stage(job, "vae_encode", time.monotonic() - started)
        return encoded

    def _embed(self, slot: Slot, prompt: Prompt) -> Embedding:
        key = (*prompt.key, *slot.applied.prompt_key)
        embedding = self._prompts.get(key)
        if embedding is None:
            started = time.monotonic()
            embedding = self.runner.encode(prompt, slot.applied)
            self._prompts.put(key, embedding)
            self._counts.add_stage(slot.job, "text_encode", time.monotonic() - started)
        return embedding

    def _finish(self, slot: Slot, picture: DecodedPicture) -> None:
        job = slot.job
        self._counts.count_picture(slot)
        self.evict(job)
        job.emit(ImageResult(picture.pixels, *job.work.tokens_read))
        job.finish()

    def _fail(self, slot: Slot) -> None:
        """Fail the job of a picture with NaN or infinities. Its prompts are encoded again when they
        come next."""
        job = slot.job
        log.error("%s: the picture of job %s is not finite", self._name, job.id)
        for prompt in job.work.prompts:
            self._prompts.drop((*prompt.key, *slot.applied.prompt_key))
        self.evict(job)
        job.fail(StepFailed("the picture's values are not finite; others were not affected"))

    def _count_done(self, steps: Sequence[FinishedStep[DenoiseStep]]) -> None:
        for step, seconds in steps:
            metrics.denoise_step_seconds.labels(self._name, step.resolution).observe(seconds)
            self._charges.charge_finished(step, seconds)
