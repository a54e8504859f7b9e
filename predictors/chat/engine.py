"""Continuous batching for Qwen2.5-VL: sequences come, read their prompt in chunks, decode together
and leave.

Implements `serving.Engine`. All a sequence can need (slot, pages for prompt and whole answer) is
reserved when it is admitted. A step launches everything first and changes its sequences last, so
that a step that raised can be repeated. On a GPU it is one step ahead: it launches, and reads the
tokens of the step before. Everything runs on one stream, so what a sequence gave back may be given
away while launched work still uses it. Knows no wire format and nobody who waits. Engine thread
only, unless a docstring says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat import limits as sizing
from predictors.chat.decoder.weights import quantize_decoder
from predictors.chat.inputs import DEFAULT_MAX_PIXELS, ChatWork
from predictors.chat.kv_cache import PagePool
from predictors.chat.metrics import Observations
from predictors.chat.model import ChatModel
from predictors.chat.picture_cache import Embeddings
from predictors.chat.pictures import PictureRunner
from predictors.chat.prefixes import keeps_prefixes, page_names
from predictors.chat.request import ChatDelta
from predictors.chat.runner import Piece, Runner
from predictors.chat.sampling import NOT_FINITE
from predictors.chat.scheduling import Chunk, Pass, Standing, Turn, pack, plan
from predictors.chat.sequence import ChatJob, Reply
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import Placement, is_device_lost
from predictors.compute.device.transfer import HostCopy
from predictors.errors import InvalidRequest, StepFailed
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.settings import QwenVLSettings

log = logging.getLogger(__name__)

PICTURE_TOKENS = 512
"""Of new pictures that are encoded in one packed step, unless the first one has more: small ones
would else be read one per pass."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A launched step: how far the prompts get, whose tokens come, and the copy that brings
    them."""

    chunks: list[tuple[Reply, Chunk[Reply]]]
    replies: list[Reply]
    copy: HostCopy


class ChatEngine:
    """The room's engine. `slots` sequences decode together."""

    def __init__(
        self,
        name: str,
        model: ChatModel,
        settings: QwenVLSettings,
        placement: Placement,
    ) -> None:
        self.slots = sizing.slots_of(settings, placement)
        self.max_context = sizing.max_context(model.shape, settings, placement)
        self.guard = RecompileGuard(name)
        self._name = name
        self._model = model
        self._settings = settings
        self._placement = placement
        self._deterministic = sizing.is_deterministic(settings, placement)
        self._shares = keeps_prefixes(settings, placement.is_cuda, self._deterministic)
        self._sequences: dict[ChatJob, Reply] = {}
        self._in_flight: Launch | None = None
        self._warm_shapes: list[str] = []
        self._free_slots = list(range(self.slots - 1, -1, -1))
        self._graphs = Graphs(name, placement)
        compiled_for = {**model.compiled_for, "settings": settings, "dtype": placement.precision}
        bundle = Bundle(placement.cache, compiled_for)
        self._start = Start(name, bundle, has_kernels=placement.is_cuda)
        self._runner: Runner  # from `load` on
        self._pool: PagePool
        self._observations = Observations(name)
        self._count_prefix = self._observations.cache("prefix")
        self._embeddings = Embeddings(settings.embedding_cache_bytes, self._observations)

    # -- Engine ----------------------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Whether there is anybody to step; whoever has tokens in flight still is. Any thread."""
        return bool(self._sequences)

    @property
    def active(self) -> list[ChatJob]:
        """Admitted jobs in order of admission. Any thread."""
        return list(self._sequences)

    def describe(self) -> Mapping[str, object]:
        """See `serving.engine.Describes`."""
        pool: PagePool | None = getattr(self, "_pool", None)
        named = 0 if pool is None else pool.num_named
        return {
            "running": {r.job.id: r.describe() for r in list(self._sequences.values())},
            "caches": {
                "vision_embedding": self._embeddings.describe(),
                "prefix": {"is_on": self._shares, "pages": named},
            },
            "kv_pages": None if pool is None else {"free": pool.num_free, "all": pool.num_pages},
            "warm_shapes": self._warm_shapes,
            "precision": sizing.precision_of(self._settings, self._placement),
            "attention": "paged",
            "recompilations_after_ready": self.guard.count,
            "captures_after_ready": self._graphs.count_after_ready,
            "start": self._start.kind,
        }

    def load(self) -> None:
        """Read the weights and lay out the KV pages."""
        self._start.begin()
        placement = self._placement
        decoder, vision = self._model.load(placement)
        if sizing.is_narrow(self._settings, placement):
            quantize_decoder(decoder)
        limits = sizing.limits(self._model.shape, self._settings, placement)
        self._pool = PagePool(limits.num_pages, limits.page_tokens, self._count_prefix)
        self._runner = Runner(decoder, limits, placement, self._graphs)
        largest = self._settings.max_pixels or DEFAULT_MAX_PIXELS
        self._embeddings.pictures = PictureRunner(vision, placement, self._graphs, largest)

    def warm(self, progress: Progress) -> None:
        """Compile, capture and run every promised shape; then nothing may be compiled or captured
        any more."""
        if self._deterministic and not self._placement.is_cuda:
            self._runner.settle_width()
        shapes = [*self._embeddings.pictures.warm_shapes(), *self._runner.warm_shapes()]
        for done, (name, run) in enumerate(shapes):
            progress(name, done, len(shapes))
            run()
        progress("ready", len(shapes), len(shapes))
        if self._deterministic and self._placement.is_cuda:
            self._runner.settle_width()  # rows can be compared once their graphs are captured
        self._warm_shapes = [name for name, _ in shapes]
        self._graphs.seal()
        self._start.end()
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
        work, pool = job.work, self._pool
        names = page_names(work, pool.page_tokens) if self._shares else ()
        total = work.num_prompt_tokens
        pages = pool.reserve(job, total + work.max_tokens, names)
        if pages is None:
            return False
        self._sequences[job] = Reply(job, self._free_slots.pop(), pages, total, names)
        self._observations.usage(pool.usage)
        return True

    def evict(self, job: ChatJob) -> None:
        """Give back slot and pages; no-op for a job that has none."""
        reply = self._sequences.pop(job, None)
        if reply is None:
            return
        reply.is_gone = True
        self._free_slots.append(reply.slot)
        self._pool.release(job)
        self._observations.usage(self._pool.usage)

    def step(self, jobs: Sequence[ChatJob]) -> None:
        """One token for everybody who decodes, and a chunk of prompt for the next who reads."""
        # after a failure jobs are stepped apart: reading what is in flight may have ended some
        replies = [self._sequences[job] for job in jobs if job in self._sequences]
        tokens: list[int] = []
        try:
            launch = self._launch(self._plan(replies))
            due = self._in_flight if self._runner.is_ahead else launch
            is_wanted = due is not None and any(not reply.is_gone for reply in due.replies)
            if due is not None and (is_wanted or not due.replies):
                tokens = due.copy.result().tolist()  # without tokens: not more than a step ahead
        except RuntimeError as error:
            if is_device_lost(error):
                raise StickyDeviceError("the device context is lost") from error
            raise
        # -- nothing below can raise: the step counts from here ----------------------------------
        self._in_flight = launch if self._runner.is_ahead else None
        if launch is not None:
            self._advance(launch)
        if due is not None and is_wanted:
            self._deliver(due.replies, tokens)
        self.guard.check()

    def close(self) -> None:
        """Let go of modules and pages."""
        self._sequences.clear()
        self._in_flight = None
        self.__dict__.pop("_runner", None)  # there may be none if loading failed
        self._embeddings.close()
        self._graphs.close()

    # -- a step ----------------------------------------------------------------------------------
    def _plan(self, replies: Sequence[Reply]) -> Turn[Reply]:
        standings: list[Standing[Reply]] = []
        is_packed = self._runner.packs
        for reply in replies:
            total = reply.total
            if reply.done == total:
                if not reply.is_launched:
                    standings.append(Standing(reply, total, total))
                continue
            if not reply.is_begun and reply.names:
                self._share(reply)
            new = self._embeddings.new(reply) if is_packed else ()
            standings.append(Standing(reply, reply.done, total, new))
        widths = self._runner.limits.chunk_widths
        return pack(standings, widths, PICTURE_TOKENS) if is_packed else plan(standings, widths)

    def _share(self, reply: Reply) -> None:
        """Skip what others have read of this prompt, since its admission too. Repeating a step does
        no harm: nothing of this prompt is launched."""
        pool = self._pool
        reply.num_shared = pool.share(reply.job, reply.names, reply.num_shared)
        reply.pages = pool.owned(reply.job)
        reply.done = reply.num_shared * pool.page_tokens

    def _launch(self, turn: Turn[Reply]) -> Launch | None:
        """Launch everything of this step; repeating it writes the same again."""
        runner = self._runner
        replies: list[Reply] = []
        tokens: list[Tensor] = []
        width = runner.decode_widths[-1]
        for first in range(0, len(turn.decode), width):
            group = turn.decode[first : first + width]
            tokens.append(runner.decode([reply.row() for reply in group]))
            self._observations.rows(len(group))
            replies += group
        chunks: list[tuple[Reply, Chunk[Reply]]] = []
        for read in turn.prefill:
            tokens.append(self._read(read))
            chunks += [(chunk.key, chunk) for chunk in read.chunks]
            replies += [chunk.key for chunk in read.chunks if _is_last(chunk)]
        if not tokens:
            return None
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return Launch(chunks, replies, runner.copy(joined))

    def _read(self, read: Pass[Reply]) -> Tensor:
        """Launch a pass over prompts; the first tokens of those that end in it."""
        pieces = [self._piece(chunk) for chunk in read.chunks]  # encodes pictures
        for chunk in read.chunks:
            reply = chunk.key
            if not reply.is_begun:
                self._runner.begin(reply.slot, reply.pages, reply.work.tokens)
        return self._runner.prefill(pieces, read.width)

    def _piece(self, chunk: Chunk[Reply]) -> Piece:
        reply, work = chunk.key, chunk.key.work
        part = slice(chunk.start, chunk.start + chunk.length)
        tokens, positions = work.tokens[part], work.positions[:, part]
        pictures = self._embeddings.within(reply, part)
        choice = reply.choice() if _is_last(chunk) else None
        where = (reply.slot, chunk.start)
        return Piece(*where, tokens, positions, reply.pages, pictures, choice)

    def _advance(self, launch: Launch) -> None:
        """What was launched counts, and the pages it fills may be read by others: they launch
        later, on the same stream."""
        for reply, chunk in launch.chunks:
            if not reply.is_begun and self._shares:
                self._count_prefix("hit" if reply.num_shared else "miss")
            reply.is_begun = True
            reply.done = chunk.start + chunk.length
            if reply.names:
                size = self._pool.page_tokens
                first, end = (min(n // size, len(reply.names)) for n in (chunk.start, reply.done))
                self._pool.publish(reply.job, reply.names, first, end)
            if _is_last(chunk):
                reply.embedded.clear()
        for reply in launch.replies:
            reply.launched += 1

    def _deliver(self, replies: Sequence[Reply], tokens: Sequence[int]) -> None:
        """Tokens were read: tell the callers, let the finished go. What was launched for a sequence
        after its last token, and for one that left, is dropped."""
        count = 0
        for reply, token in zip(replies, tokens, strict=True):
            if reply.is_gone:
                continue
            if token == NOT_FINITE:
                self._fail(reply)
                continue
            self._extend(reply, token)
            count += 1
        self._observations.tokens(count)

    def _extend(self, reply: Reply, token: int) -> None:
        job, work = reply.job, reply.work
        reply.answer.append(token)
        self._observations.token(reply, job.clock())
        made = len(reply.answer)
        reason = "length" if made >= work.max_tokens else None
        if token in self._model.end_tokens and not work.ignore_eos:
            reason = "stop"
        if reason is None:
            job.emit(ChatDelta((token,), reply.total, made))
            return
        self._observations.end(reply)
        job.emit(ChatDelta((token,), reply.total, made, finish_reason=reason))
        self.evict(job)
        job.finish()

    def _fail(self, reply: Reply) -> None:
        """Its logits hold NaN or infinities: answered as a failure, and nothing that it read or
        made is shared any more."""
        job = reply.job
        log.error("%s: the logits of job %s are not finite", self._name, job.id)
        self._embeddings.forget(reply)
        self._pool.forget(job)
        self.evict(job)
        job.fail(StepFailed("the model's values are not finite; others were not affected"))


def _is_last(chunk: Chunk[Reply]) -> bool:
    return chunk.start + chunk.length == chunk.key.total
