"""The chat engine: continuous batching of sequences, which are admitted, read their prompt in
chunks, decode together and leave.

A sequence has a slot from admission on, and pages that grow with it (`Paging`). A step launches
everything first and changes its sequences last, so that a step that raised can be repeated. On a
GPU the engine is one step ahead: a step launches, and then reads the tokens of the step before.
"""

from __future__ import annotations

import logging
import time
from collections import abc
from collections.abc import Callable

from predictors.chat.adapters.places import decoder_places
from predictors.chat.adapters.slots import AdapterSlots
from predictors.chat.answer_lengths import AnswerLengths
from predictors.chat.decoder.weights import quantize_decoder
from predictors.chat.delivery import TokenDelivery
from predictors.chat.kv_cache import PagePool, page_names
from predictors.chat.launching import StepLauncher, ends_prompt
from predictors.chat.limits import (
    check_controls,
    is_deterministic,
    loaded_bytes,
    max_context,
    num_slots,
    pixel_limits,
    plan_limits,
    precision_of,
    shares_prefixes,
    uses_fp8,
    why_no_films,
)
from predictors.chat.model import ChatModel
from predictors.chat.paging import Paging
from predictors.chat.pass_needs import NO_NEEDS, PassNeeds
from predictors.chat.pass_timing import measured_budget
from predictors.chat.planning import LaunchedStep, StepPlanner
from predictors.chat.rehearsal import Rehearsal
from predictors.chat.request import NO_CONTROLS, TokenLogprob
from predictors.chat.runner import ChatRunner
from predictors.chat.sequence import (
    ChatJob,
    ChatMetrics,
    Sequence,
    constraint_of,
    end_tokens_of,
)
from predictors.chat.slot_rows import SlotRows
from predictors.chat.vision.films import FRAMES
from predictors.chat.vision.pictures import PictureCache, PictureRunner
from predictors.chat.warming import CompilationWatch, DefaultPicture, PassWarming
from predictors.chat.work import ChatWork
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import Placement, is_device_lost
from predictors.compute.device.sharing import SharedCard, TokenTurns
from predictors.errors import PromptTooLong, StepFailed
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.serving.turns import num_spare
from predictors.serving.warm_plan import WarmPlan
from predictors.settings import QwenVLSettings

log = logging.getLogger(__name__)


class ChatEngine:
    """Implements `serving.Engine[ChatWork, ChatDelta]` for one model; `slots` sequences decode
    together. Engine thread only, except for members that say otherwise.

    Everything runs on one stream, so pages that a sequence returned may be given to another while
    launched work still reads them.
    """

    def __init__(
        self, name: str, model: ChatModel, settings: QwenVLSettings, placement: Placement
    ) -> None:
        self.slots = num_slots(settings, placement)
        self.spare_slots = num_spare(self.slots)
        self.max_context = max_context(model.shape, settings, placement)
        self.guard = RecompileGuard(name)
        self.conversations: Callable[[], abc.Iterable[tuple[str, ChatWork]]] = tuple
        """Makes the conversations that run through the whole model at the end of warming, each with
        its name."""
        self.plan: WarmPlan | None = None
        """The passes that `warm` has left for later. Any thread."""
        self.lengths = AnswerLengths()
        """Observed here at each eviction; read where requests are prepared."""
        self.adapters = AdapterSlots(settings.lora_max_active)
        self._name = name
        self._model = model
        self._settings = settings
        self._placement = placement
        self._deterministic = is_deterministic(settings, placement)
        self._shares = shares_prefixes(settings, placement)
        self._sequences: dict[ChatJob, Sequence] = {}
        self._in_flight: LaunchedStep | None = None
        self._warm_passes: list[str] = []
        self._needs = NO_NEEDS
        self._free_slots = list(range(self.slots + self.spare_slots - 1, -1, -1))
        self._graphs = Graphs(name, placement)
        own = {"settings": settings.of_passes, "dtype": placement.precision}
        bundle = Bundle(placement.cache, {**model.compiled_for, **own})
        self._start = Start(name, bundle, has_kernels=placement.is_cuda)
        self._loaded: StepLauncher | None = None
        self._paging: Paging | None = None
        self._metrics = ChatMetrics(name)
        self._count_prefix = self._metrics.cache_counter("prefix")
        self._picture_cache = PictureCache(settings.embedding_cache_bytes, self._metrics)
        self._planner = StepPlanner(self.slots, self._picture_cache)
        self._delivery = TokenDelivery(self._metrics, self.evict, self._fail)
        self._turns = TokenTurns()

    def share(self, card: SharedCard) -> None:
        """Take turns with engines that draw pictures on `card`. Before `load`."""
        self._turns = TokenTurns(card)
        self._graphs.prioritise(self._turns.priority)

    # -- Engine ----------------------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        """True while a sequence is admitted, one with tokens in flight included. Any thread."""
        return bool(self._sequences)

    @property
    def active(self) -> list[ChatJob]:
        """Admitted jobs in order of admission. Any thread."""
        return list(self._sequences)

    def describe(self) -> abc.Mapping[str, object]:
        """State, caches and sizes, for operators. Any thread."""
        paging = self._paging
        named = 0 if paging is None else paging.pool.num_named
        return {
            "running": {s.job.id: s.describe() for s in list(self._sequences.values())},
            "caches": {
                "vision_embedding": self._picture_cache.describe(),
                "prefix": {"is_on": self._shares, "pages": named},
            },
            "kv_pages": None if paging is None else paging.describe(),
            "adapters": self.adapters.describe(),
            "step_budget": self._planner.describe(),
            "warm_shapes": list(self._warm_passes),
            "precision": precision_of(self._settings, self._placement),
            "attention": "paged",
            "recompilations_after_ready": self.guard.count,
            "captures_after_ready": self._graphs.count_after_ready,
            "start": self._start.kind,
            "plan": None if self.plan is None else self.plan.describe(),
        }

    def load(self) -> None:
        self._start.begin()
        self._turns.use_stream()
        model, placement, own = self._model, self._placement, self._settings
        decoder, vision = model.load(placement)
        if uses_fp8(own, placement):
            quantize_decoder(decoder)
        places = {**decoder_places(decoder), **vision.places}
        tables = self.adapters.make_tables(places, own.adapter_rank, placement)
        most, graphs = pixel_limits(own, model.pictures).max_pixels, self._graphs
        frames = 1 if why_no_films(own, model) else FRAMES
        pictures = PictureRunner(vision, placement, graphs, most, tables=tables, frames=frames)
        loaded = loaded_bytes(decoder, places, tables)
        limits = plan_limits(model.shape, own, placement, pictures.buckets[-1], loaded)
        pool = PagePool(limits.num_pages, limits.page_tokens, self._count_prefix)
        self._paging = paging = Paging(
            pool, self._sequences, self._planner.holders, limits, self._metrics,
            may_preempt=not self._deterministic,
        )  # fmt: skip
        self.max_context = min(self.max_context, limits.num_pages * limits.page_tokens)
        runner = ChatRunner(decoder, limits, placement, graphs, tables, model.end_tokens)
        slots = SlotRows(self.slots + self.spare_slots, model.shape.vocab)
        cache, metrics = self._picture_cache, self._metrics
        self._loaded = StepLauncher(runner, pictures, cache, paging, metrics, slots)

    def warm(self, progress: Progress) -> None:
        """Run every promised pass once; `qwen_vl.warm` may leave most of them to `plan`. Nothing
        else is compiled or captured afterwards."""
        warming, works = self._warming(), list(self.conversations())
        self._warm_passes = warming.warm
        if self._settings.warm == "all":
            warming.warm_all(works, progress)
            return
        pictures = self._model.pictures
        patches = pixel_limits(self._settings, pictures).default_max_pixels // pictures.patch**2
        picture = DefaultPicture(patches, patches // pictures.merge**2)
        self._needs = warming.needs
        self.plan = warming.warm_first(self._name, works, picture, progress)

    def _warming(self) -> PassWarming:
        ready, is_fixed = self._launcher, self._deterministic and not self._shares
        needs = PassNeeds(ready.runner.chunk_widths, ready.pictures.graph_of, is_fixed)
        watch = CompilationWatch(self._graphs, self._start, self.guard)
        rehearsal = Rehearsal(ready.runner, ready.pictures, self._pages.pool, self._model.tokenizer)
        return PassWarming(
            rehearsal, self.adapters, watch, needs, self._placement.is_cuda, self._deterministic,
            on_warmed=self._planner.skip_until, on_over=self._measure_passes,
        )  # fmt: skip

    def _measure_passes(self, cold: abc.Sequence[str]) -> None:
        """Set the budget of steps. `cold` are the names of passes that could not be warmed."""
        steps, ready = self._settings.prefill_steps, self._launcher
        budget = measured_budget(
            self._name, steps, ready.runner, ready.pictures, self._placement, cold
        )
        self._planner.set_budget(budget)

    def validate(self, work: ChatWork) -> None:
        """Raise `PromptTooLong` if all pages together are not enough, `InvalidRequest` for controls
        that the engine can't have, `ShapeNotWarm` for a pass that has failed. Any thread."""
        if work.controls is not NO_CONTROLS:
            check_controls(work.controls, self._model.shape.vocab, work.max_tokens)
        if work.num_prompt_tokens + work.max_tokens > self.max_context:
            raise PromptTooLong.of(self.max_context, work.num_prompt_tokens, work.max_tokens)
        if self.plan is not None:
            self.plan.check(self._needs.of(work))

    def admit(self, job: ChatJob) -> bool:
        work, paging, account = job.work, self._pages, job.account
        holders, mix = self._planner.holders, work.adapters
        if not holders.has_slot_for(account, self.slots, self.spare_slots):
            return False
        if mix.scales and not self.adapters.has_room(mix):
            return False
        if self.plan is not None:
            self.plan.warm_for(self._needs.of(work))
        names = page_names(work, paging.pool.page_tokens) if self._shares else ()
        ends = end_tokens_of(work, self._model.end_tokens)
        sequence = Sequence(job, self._free_slots[-1], work.num_prompt_tokens, ends, names)
        if not paging.admit(sequence):
            return False
        self._free_slots.pop()
        self._sequences[job] = sequence
        holders.add(job)
        if mix.scales:  # last: if it raises, `evict` releases all
            held = self.adapters.hold(job, mix)
            sequence.language_adapters, sequence.vision_adapters = held
        if not work.is_plain:
            sequence.is_plain, sequence.constraint = False, constraint_of(work, ends)
        return True

    def evict(self, job: ChatJob) -> None:
        sequence = self._sequences.pop(job, None)
        if sequence is None:
            return
        sequence.is_evicted = True
        work, made = sequence.work, len(sequence.answer)
        # the learned rate must depend neither on a wrong guess of the length nor on preemptions
        job.spent_cost = work.cost_with(made, sequence.num_lost)
        if made and not work.ignore_eos:
            self.lengths.observe(work.max_tokens, made, is_open=work.is_open)
        self._free_slots.append(sequence.slot)
        self._planner.holders.remove(job)
        self._pages.release(sequence)
        if work.adapters.scales:
            self.adapters.release(job)

    def step(self, jobs: abc.Sequence[ChatJob]) -> None:
        """One token for every sequence that decodes, at most `slots` of them, and the next chunks
        of prompts. On a GPU the tokens that reach the jobs are those of the step before."""
        launcher, planner, runner = self._launcher, self._planner, self._launcher.runner
        # after a failure jobs are stepped apart: reading the tokens in flight may have ended some
        sequences = [s for s in map(self._sequences.get, jobs) if s is not None]
        tokens, scores = list[int](), dict[Sequence, TokenLogprob]()
        try:
            widths = runner.chunk_widths
            plan = planner.plan(sequences, self._pages, widths, is_packed=runner.packs)
            previous = self._in_flight if runner.is_ahead else None
            with self._turns.step(launches=bool(plan.decode or plan.prefill)):
                launched = launcher.launch(plan, time.perf_counter(), previous)
            due = previous if runner.is_ahead else launched
            if due is not None and due.is_abandoned:
                due = None
            if due is not None:
                tokens = due.read()  # waits, also if it has none: at most one step is ahead
                due.advance_grammars()
                scores = due.read_scores()
        except RuntimeError as error:
            if is_device_lost(error):
                raise StickyDeviceError("the device context is lost") from error
            raise
        # -- nothing below can raise: the step counts from here ----------------------------------
        self._in_flight = launched if runner.is_ahead else None
        if launched is not None:
            planner.note_launched(launched)
            self._advance(launched)
        if due is not None:
            planner.charge_finished(due, time.perf_counter())
            self._delivery.deliver(due.sequences, tokens, scores)
        self.guard.check()

    def close(self) -> None:
        """Free the device's memory. Also after a `load` that failed."""
        self._sequences.clear()
        self._planner.holders.clear()
        self._in_flight = None
        self._loaded = None
        self._picture_cache.close()
        self.adapters.close()
        self._graphs.close()

    @property
    def _launcher(self) -> StepLauncher:
        """The loaded model's launcher. Raises `RuntimeError` before `load` and after `close`."""
        if self._loaded is None:
            raise RuntimeError("the model is not loaded")
        return self._loaded

    @property
    def _pages(self) -> Paging:
        if self._paging is None:
            raise RuntimeError("the model is not loaded")
        return self._paging

    # -- a step ----------------------------------------------------------------------------------
    def _advance(self, launched: LaunchedStep) -> None:
        """Count the launched tokens, and share the pages that they fill. Other sequences read these
        later on the same stream."""
        pool = self._pages.pool
        for chunk in launched.chunks:
            sequence = chunk.key
            if self._shares and not (sequence.is_begun or sequence.num_lost):
                self._count_prefix("hit" if sequence.num_shared else "miss")
                sequence.work.reuse.cached_tokens = sequence.num_shared * pool.page_tokens
            sequence.is_begun = True
            sequence.num_prefilled = chunk.start + chunk.length
            if sequence.names:
                size, most = pool.page_tokens, len(sequence.names)
                first, end = (min(n // size, most) for n in (chunk.start, sequence.num_prefilled))
                pool.publish(sequence.job, sequence.names, first, end)
            if ends_prompt(chunk):
                sequence.pictures.clear()
        for sequence in launched.sequences:
            sequence.num_launched += 1

    def _fail(self, sequence: Sequence) -> None:
        """Fail a sequence whose logits are not finite; stop sharing its pictures and pages."""
        job = sequence.job
        log.error("%s: the logits of job %s are not finite", self._name, job.id)
        self._picture_cache.drop(sequence)
        self._pages.pool.forget(job)
        self.evict(job)
        job.fail(StepFailed("the model's values are not finite; others were not affected"))
