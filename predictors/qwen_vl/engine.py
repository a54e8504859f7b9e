"""Continuous batching for Qwen2.5-VL: sequences come, read their prompt in chunks, decode together
and leave.

Implements `serving.Engine`. All a sequence can need (slot, pages for prompt and whole answer) is
reserved when it is admitted. A step computes everything first and changes its sequences last, so
that a step that raised can be repeated. Knows no wire format and nobody who waits. Engine thread
only, unless a docstring says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from predictors import metrics
from predictors.compute.caches import ByteBoundedCache
from predictors.compute.compiling import RecompileGuard
from predictors.compute.device import Placement, is_device_lost
from predictors.errors import InvalidRequest
from predictors.qwen_vl.inputs import ChatWork, PlacedPicture
from predictors.qwen_vl.kv_cache import Limits, PagePool
from predictors.qwen_vl.reply import ChatJob, Reply
from predictors.qwen_vl.request import ChatDelta
from predictors.qwen_vl.runner import (
    Piece,
    Runner,
    free_pages,
    is_deterministic,
    max_context,
)
from predictors.qwen_vl.scheduling import (
    Chunk,
    Standing,
    Turn,
    chunk_widths,
    fixed_width,
    plan,
    powers_to,
)
from predictors.qwen_vl.weights import Architecture, load_modules
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.settings import QwenVLSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computed: sequences with their new tokens, and how far the prompts got."""

    sequences: list[Reply]
    tokens: Tensor | None
    chunks: list[tuple[Reply, Chunk[ChatJob]]]


class QwenVLEngine:
    """The room's engine. `slots` sequences decode together."""

    def __init__(
        self,
        model: str,
        checkpoint: Path,
        architecture: Architecture,
        settings: QwenVLSettings,
        placement: Placement,
    ) -> None:
        self.slots = settings.slots
        self.max_context = max_context(architecture, settings, placement)
        self.guard = RecompileGuard(model)
        self._model = model
        self._checkpoint = checkpoint
        self._architecture = architecture
        self._settings = settings
        self._placement = placement
        self._deterministic = is_deterministic(settings, placement)
        self._sequences: dict[ChatJob, Reply] = {}
        self._warm_shapes: list[str] = []
        self._free_slots = list(range(self.slots - 1, -1, -1))
        self._runner: Runner  # from `load` on
        self._pool: PagePool
        self._embeddings: ByteBoundedCache[bytes, Tensor] = ByteBoundedCache(
            settings.embedding_cache_bytes, lambda tokens: tokens.nbytes, self._observe_cache
        )

    # -- Engine ----------------------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Whether there is anybody to step. Any thread."""
        return bool(self._sequences)

    @property
    def active(self) -> list[ChatJob]:
        """Admitted jobs in order of admission. Any thread."""
        return list(self._sequences)

    def describe(self) -> Mapping[str, object]:
        """See `serving.engine.Describes`."""
        pool: PagePool | None = getattr(self, "_pool", None)
        kept = getattr(self, "_embeddings", None)  # gone once closed
        cached = {"entries": len(kept or ()), "bytes": kept.num_bytes if kept else 0}
        return {
            "running": {r.job.id: r.describe() for r in list(self._sequences.values())},
            "caches": {"vision_embedding": cached},
            "kv_pages": None if pool is None else {"free": pool.num_free, "all": pool.num_pages},
            "warm_shapes": self._warm_shapes,
            "precision": self._placement.precision,
            "attention": "paged",
            "recompilations_after_ready": self.guard.count,
        }

    def load(self) -> None:
        """Read the weights and lay out the KV pages."""
        placement = self._placement
        decoder, vision = load_modules(
            self._checkpoint, self._architecture, placement.device, placement.dtype
        )
        limits = self._limits()
        self._pool = PagePool(limits.num_pages, limits.page_tokens)
        self._runner = Runner(decoder, vision, limits, placement)

    def warm(self, progress: Progress) -> None:
        """Compile and run every promised shape; then nothing may compile any more."""
        runner = self._runner
        if self._deterministic and not runner.rows_agree():
            log.warning("rows of a decode step differ in bits on this machine; decoding one by one")
            runner.decode_widths = (1,)
        shapes = runner.warm_shapes()
        for done, (name, run) in enumerate(shapes):
            progress(name, done, len(shapes))
            run()
        progress("ready", len(shapes), len(shapes))
        self._warm_shapes = [name for name, _ in shapes]
        self.guard.seal()

    def validate(self, work: ChatWork) -> None:
        """Raise `InvalidRequest` if the pages would never be enough. Any thread."""
        pool = self._pool
        tokens = work.num_prompt_tokens + work.max_tokens
        limit = min(self.max_context, pool.num_pages * pool.page_tokens)
        if tokens > limit:
            raise InvalidRequest(
                f"{work.num_prompt_tokens} tokens of prompt and max_tokens {work.max_tokens} are "
                f"more than the {limit} that fit",
                param="max_tokens",
            )

    def admit(self, job: ChatJob) -> bool:
        """Reserve a slot and all pages, or return False and change nothing."""
        if not self._free_slots:
            return False
        pages = self._pool.reserve(job, job.work.num_prompt_tokens + job.work.max_tokens)
        if pages is None:
            return False
        self._sequences[job] = Reply(job, self._free_slots.pop(), pages)
        self._show_usage()
        return True

    def evict(self, job: ChatJob) -> None:
        """Give back slot and pages; no-op for a job that has none."""
        reply = self._sequences.pop(job, None)
        if reply is None:
            return
        self._free_slots.append(reply.slot)
        self._pool.release(job)
        self._show_usage()

    def step(self, jobs: Sequence[ChatJob]) -> None:
        """One token for everybody who decodes, and a chunk of prompt for the next who reads."""
        standings = [
            Standing(job, self._sequences[job].done, job.work.num_prompt_tokens) for job in jobs
        ]
        turn = plan(standings, chunk_widths(self._settings.prefill_chunk))
        try:
            outcome = self._compute(turn)
            tokens = [] if outcome.tokens is None else self._runner.read(outcome.tokens)
        except RuntimeError as error:
            if is_device_lost(error):
                raise StickyDeviceError("the device context is lost") from error
            raise
        self._commit(outcome, tokens)
        self.guard.check()

    def close(self) -> None:
        """Let go of modules and pages."""
        self._sequences.clear()
        for name in ("_runner", "_embeddings"):  # there may be none if loading failed
            self.__dict__.pop(name, None)

    # -- a step ----------------------------------------------------------------------------------
    def _compute(self, turn: Turn[ChatJob]) -> Outcome:
        """Launch everything of this step; repeating it writes the same again."""
        runner = self._runner
        sequences: list[Reply] = []
        tokens: list[Tensor] = []
        decoding = [self._sequences[job] for job in turn.decode]
        width = runner.decode_widths[-1]
        for first in range(0, len(decoding), width):
            group = decoding[first : first + width]
            logits = runner.decode([s.row() for s in group])
            tokens.append(runner.choose(logits, [s.choice() for s in group]))
            metrics.batch_size.labels(self._model).observe(len(group))
            sequences += group
        chunks = [(self._sequences[chunk.key], chunk) for chunk in turn.prefill]
        for reply, chunk in chunks:
            logits = self._read_chunk(reply, chunk)
            if chunk.start + chunk.length == reply.work.num_prompt_tokens:
                tokens.append(runner.choose(logits, [reply.choice()]))
                sequences.append(reply)
        return Outcome(sequences, torch.cat(tokens) if tokens else None, chunks)

    def _read_chunk(self, reply: Reply, chunk: Chunk[ChatJob]) -> Tensor:
        runner, work = self._runner, reply.work
        if chunk.start == 0:
            runner.begin(reply.slot, reply.pages, work.tokens)
        part = slice(chunk.start, chunk.start + chunk.length)
        tokens, positions = work.tokens[part], work.positions[:, part]
        pictures = self._pictures_in(reply, part)
        where = (reply.slot, chunk.start, chunk.width)
        return runner.prefill(Piece(*where, tokens, positions, reply.pages, pictures))

    def _pictures_in(self, reply: Reply, part: slice) -> list[tuple[int, Tensor]]:
        """First row and embeddings of the pictures that lie in a part of the prompt."""
        found = []
        for i, picture in enumerate(reply.work.pictures):
            first = max(picture.start, part.start)
            end = min(picture.start + picture.length, part.stop)
            if first < end:
                tokens = self._embedding(reply, i, picture)
                rows = tokens[first - picture.start : end - picture.start]
                found.append((first - part.start, rows))
        return found

    def _embedding(self, reply: Reply, index: int, picture: PlacedPicture) -> Tensor:
        """The picture's tokens: the sequence's own, from the cache, or newly made."""
        tokens = reply.embedded.get(index)
        if tokens is None:
            tokens = self._embeddings.get(picture.patches.key)
        if tokens is None:
            started = reply.job.clock()
            tokens = self._runner.encode(picture.patches.values, picture.patches.grid)
            self._embeddings.put(picture.patches.key, tokens)
            self._stage(reply.job, "vision_encode", reply.job.clock() - started)
        reply.embedded[index] = tokens  # the cache may drop it before the last chunk
        return tokens

    def _commit(self, outcome: Outcome, tokens: list[int]) -> None:
        """The step has succeeded: move the sequences on, tell the callers, let the finished go."""
        if outcome.tokens is not None:
            self._runner.commit([s.slot for s in outcome.sequences], outcome.tokens)
        for reply, chunk in outcome.chunks:
            reply.done += chunk.length
            if reply.done == reply.work.num_prompt_tokens:
                reply.embedded.clear()
        for reply, token in zip(outcome.sequences, tokens, strict=True):
            self._extend(reply, token)

    def _extend(self, reply: Reply, token: int) -> None:
        reply.answer.append(token)
        self._observe_token(reply)
        reason = self._finish_reason(reply)
        prompt, answer = reply.work.num_prompt_tokens, len(reply.answer)
        if reason is not None:
            self._observe_end(reply)
        reply.job.emit(ChatDelta((token,), prompt, answer, finish_reason=reason))
        if reason is not None:
            self.evict(reply.job)
            reply.job.finish()

    def _finish_reason(self, reply: Reply) -> str | None:
        work = reply.work
        if reply.answer[-1] in self._architecture.eos_tokens and not work.ignore_eos:
            return "stop"
        return "length" if len(reply.answer) >= work.max_tokens else None

    # -- metrics ---------------------------------------------------------------------------------
    def _observe_token(self, reply: Reply) -> None:
        now = reply.job.clock()
        metrics.generation_tokens_total.labels(self._model).inc()
        if len(reply.answer) == 1:
            self._observe_first(reply, now)
        else:
            metrics.itl_seconds.labels(self._model).observe(now - reply.last_token_at)
        reply.last_token_at = now

    def _observe_first(self, reply: Reply, now: float) -> None:
        job, work = reply.job, reply.work
        reply.first_token_at = now
        metrics.ttft_seconds.labels(self._model).observe(now - job.submitted_at)
        self._stage(job, "prefill", now - (job.admitted_at or job.submitted_at))
        metrics.prompt_tokens_total.labels(self._model).inc(work.num_prompt_tokens)
        metrics.vision_tokens_total.labels(self._model).inc(sum(p.length for p in work.pictures))
        metrics.request_prompt_tokens.labels(self._model).observe(work.num_prompt_tokens)

    def _observe_end(self, reply: Reply) -> None:
        self._stage(reply.job, "decode", reply.last_token_at - reply.first_token_at)
        metrics.request_generation_tokens.labels(self._model).observe(len(reply.answer))

    def _stage(self, job: ChatJob, stage: str, seconds: float) -> None:
        job.note(stage, seconds)
        metrics.stage_seconds.labels(self._model, stage).observe(seconds)

    def _observe_cache(self, result: str) -> None:
        metrics.cache_requests_total.labels(self._model, "vision_embedding", result).inc()

    def _show_usage(self) -> None:
        metrics.kv_cache_usage_ratio.labels(self._model).set(self._pool.usage)

    # -- shapes ----------------------------------------------------------------------------------
    def _limits(self) -> Limits:
        settings, slots = self._settings, self.slots
        widths = (fixed_width(slots),) if self._deterministic else powers_to(slots)
        return Limits.plan(
            slots=slots,
            page_tokens=settings.page_tokens,
            kv_tokens=settings.kv_tokens,
            max_context=self.max_context,
            free_pages=free_pages(self._architecture.text, settings.page_tokens, self._placement),
            decode_widths=widths,
            chunk_widths=chunk_widths(settings.prefill_chunk),
        )
