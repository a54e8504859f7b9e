"""The predictor of a chat model: one checkpoint behind every protocol.

It connects codec, preparer, engine and reader; the order of a request is `base`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from predictors import metrics
from predictors.base import INLINE_BYTES, LATE, Answer, BasePredictor
from predictors.chat.adapters.named import NamedAdapters
from predictors.chat.chunks import slowest
from predictors.chat.codec import INPUT_TYPES, ChatCodec
from predictors.chat.detokenize import AnswerReader, Vocabulary
from predictors.chat.encoders import AnswerEncoder, encoder_of, requests_of
from predictors.chat.engine import ChatEngine
from predictors.chat.grounding.reader import BoxReader
from predictors.chat.inputs import ChatPreparer
from predictors.chat.limits import precision_of
from predictors.chat.log_fields import fields_of, prompt_of
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.model import ChatModel
from predictors.chat.parameter_ranges import parameter_schemas
from predictors.chat.rehearsal import conversations
from predictors.chat.request import (
    NO_CONTROLS,
    USUAL_TEXT,
    ChatDelta,
    ChatRequest,
)
from predictors.chat.row_events import RowEvents
from predictors.chat.row_preparation import RowPreparation
from predictors.chat.sequence import SERIES
from predictors.chat.streaming import encode_deltas
from predictors.chat.template_checks import check_spelling, check_template
from predictors.chat.template_options import own_variables
from predictors.chat.tokenization import Tokenization
from predictors.chat.tracked_reader import TrackedReader
from predictors.chat.v2_outputs import OUTPUT_TYPES
from predictors.chat.work import ChatWork
from predictors.compute.checkpoint.layout import announce_weights
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.placement import announce, place
from predictors.compute.device.sharing import SharedCard
from predictors.errors import DeadlineExceeded
from predictors.observe import tracing
from predictors.protocol.call import Call
from predictors.protocol.http.bodies import fail_at
from predictors.protocol.openai.tokens_body import DetokenizeBody, TokenizeBody
from predictors.protocol.text_body import TextBody
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.serving.estimates import Costs
from predictors.settings import Settings
from predictors.workers.pool import Workers


class ChatPredictor(BasePredictor[ChatRequest, ChatWork, ChatDelta]):
    """Serves a `ChatModel`. Making one reads no weights."""

    task: ClassVar[str] = "qwen_vl"
    series = SERIES
    file_inputs: ClassVar[frozenset[str]] = frozenset({"image", "video"})

    def __init__(
        self, name: str, model: ChatModel, settings: Settings, workers: Workers | None = None
    ) -> None:
        placement = place(settings.compute)
        engine = ChatEngine(name, model, settings.qwen_vl, placement)
        super().__init__(name, engine, settings, workers)
        announce(name, placement)
        self._engine = engine
        self._preparer = ChatPreparer(
            name,
            model,
            settings.qwen_vl,
            settings.images,
            lambda: engine.max_context,
            on_device=placement.is_cuda,
            film_limits=settings.films,
            lengths=engine.lengths,
        )
        if self._preparer.films is not None:
            self._preparer.check_films()
        self._rows = RowPreparation(self._preparer, settings.images, self.off_loop)
        tokens_of = self._preparer.tokens_of
        check_template(model.template, tokens_of, model.tokenizer, model.image_token)
        engine.conversations = partial(
            conversations, name, model, self._preparer, on_device=placement.is_cuda
        )
        self._vocabulary = Vocabulary(model.tokenizer, model.shape.vocab)
        check_spelling(self._vocabulary.bytes_of, model.tokenizer)
        self._adapters = NamedAdapters(name, model.linears, settings.qwen_vl, placement)
        precision = precision_of(settings.qwen_vl, placement)
        self._codec = ChatCodec(
            model.sampling,
            precision,
            settings.images.max_images,
            self._preparer.pixels,
            model=name,
            mix=self._adapters.mix,
            logprobs=LogprobWriters(self._vocabulary),
            variables=own_variables(model.template or ""),
            opens_thinking=model.opens_thinking,
            max_films=settings.films.max_films,
            no_films=self._preparer.no_films,
        )
        tokens = self._preparer.tokens
        self._tokenization = Tokenization(self, self._codec, tokens, lambda: engine.max_context)
        self._detokenize_seconds = metrics.stage_seconds.labels(name, "detokenize")

    @classmethod
    def of_checkpoint(
        cls,
        make_model: Callable[[Path, str], ChatModel],
        name: str,
        checkpoint: Path,
        settings: Settings,
        workers: Workers | None = None,
        loras: Mapping[str, Path] = MappingProxyType({}),
    ) -> ChatPredictor:
        """The predictor of `make_model`'s model of a folder with its variant of weights. `loras`
        are the folders of its first adapters by name. Raises `InvalidRequest` for one of them."""
        variant = settings.compute.weights_variant
        announce_weights(name, checkpoint, variant)
        model = make_model(checkpoint, variant)
        predictor = cls(name, model, settings.with_adapter_room(cls.task, len(loras)), workers)
        for lora, path in loras.items():
            predictor.add_lora(lora, path)
        return predictor

    def share(self, card: SharedCard) -> None:
        self._engine.share(card)

    # -- adapters --------------------------------------------------------------------------------
    @property
    def adapter_names(self) -> Sequence[str]:
        """Names of the adapters that requests may use now. Any thread."""
        return self._adapters.names

    @property
    def loras(self) -> Sequence[AdapterSummary]:
        """Descriptions of the adapters that requests may use now. Any thread."""
        return self._adapters.summaries

    def add_lora(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        """As `NamedAdapters.add`: the next request may use it."""
        return self._adapters.add(name, path, root)

    def remove_lora(self, name: str) -> AdapterSummary:
        """Refuse new requests for it, and wait until all accepted ones are answered. Any thread but
        the engine's. Raises `NotFound`."""
        adapter = self._adapters.remove(name)
        self.host.wait_until_unused(lambda work: adapter in work.adapters)
        return adapter.summary

    # -- hooks of BasePredictor ------------------------------------------------------------------
    def get_input_types(self) -> list[dict[str, Any]]:
        return INPUT_TYPES

    def get_output_types(self) -> list[dict[str, Any]]:
        return OUTPUT_TYPES

    def get_parameters(self) -> Mapping[str, Mapping[str, Any]]:
        own, codec = self.settings.qwen_vl, self._codec
        return parameter_schemas(codec.defaults, codec.pixels, own.default_max_tokens)

    def get_limits(self) -> Mapping[str, Any]:
        images, pixels = self.settings.images, self._codec.pixels
        return {
            "max_context": self._engine.max_context,
            "max_images": images.max_images,
            "image_max_bytes": images.max_bytes,
            "image_max_pixels": images.max_pixels,
            "max_films": 0 if self._preparer.no_films else self.settings.films.max_films,
            "min_pixels": pixels.min_pixels,
            "max_pixels": pixels.max_pixels,
            "coordinates": self._preparer.convention,
            "vocabulary_size": self._vocabulary.size,
            "template_variables": sorted(self._codec.variables),
            "precision": self._codec.precision,
            "loras": list(self._adapters.names),
            "tools": self._preparer.texts.tools.way.value,
            "queue_capacity": self.settings.queue.capacity,
        }

    def decode_v2(self, request: V2Request) -> list[ChatRequest]:
        return self._codec.decode_v2(request)

    def prepare(self, request: ChatRequest) -> ChatWork:
        """Tokens, positions and prepared pictures, all made on this thread."""
        return self._preparer.prepare(request)

    async def prepare_row(self, request: ChatRequest, deadline: float | None = None) -> ChatWork:
        """`prepare` off the event loop, but for short prompts, which take less time than the way to
        a thread and back. Workers, if there are any, decode the pictures one after the other."""
        if request.is_short:
            await asyncio.sleep(0)  # between the rows of one call others have their turn
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded(LATE)
            return self._preparer.assemble(request, [])
        async with fail_at(deadline, LATE):
            if self.workers is None:
                is_large = request.num_chars > INLINE_BYTES or request.has_large_format
                return await self.off_loop(self.prepare, request, is_large=is_large)
            return await self._rows.prepare(request, self.workers)

    def encode_v2(
        self, request: V2Request, answers: list[Answer[ChatRequest, ChatDelta]]
    ) -> V2Response:
        return self._codec.encode_v2(request, answers)

    def costs(self, requests: Sequence[ChatRequest]) -> Costs:
        """About the decode steps that the answers will take, and the prompts' time in such
        steps."""
        return {"": sum(self._preparer.cost(request) for request in requests)}

    def least_costs(self, requests: Sequence[ChatRequest]) -> Costs:
        return {"": sum(self._preparer.least_cost(request) for request in requests)}

    def reader(self, work: ChatWork) -> AnswerReader | BoxReader:
        sizes, controls = self._preparer.sizes(work), work.controls
        vocabulary, observe = self._vocabulary, self._observe_detokenize
        if controls == NO_CONTROLS and work.text == USUAL_TEXT:
            reader = AnswerReader(vocabulary, work.stop, observe, sizes, work.reuse)
        else:
            reader = TrackedReader(
                vocabulary, work.stop, observe, sizes, work.reuse,
                options=work.text, min_tokens=controls.min_tokens,
            )  # fmt: skip
        if work.coordinates is None:
            return reader
        return BoxReader(reader, self._vocabulary, self._preparer.convention, work.coordinates)

    def _observe_detokenize(self, seconds: float) -> None:
        self._detokenize_seconds.observe(seconds, tracing.exemplar())

    def log_fields(self, work: ChatWork, last: ChatDelta | None) -> Mapping[str, int | str]:
        return fields_of(work, last)

    def prompt(self, request: ChatRequest) -> str:
        return prompt_of(request)

    async def infer_stream(self, request: V2Request, call: Call) -> AsyncGenerator[V2Response]:
        """The responses to one V2 request as its answer grows, or one where `stream` is not set.
        Closing the generator cancels the jobs."""
        rows = await self._decode(request, call)
        if not request.parameters.get("stream"):
            yield await self._encode(request, await self.run(rows, call))
            return
        submissions = await self.submit(rows, call)
        (submission,) = submissions
        try:
            async with aclosing(submission.batches()) as batches:  # type: ignore[type-var]
                async for deltas in batches:
                    times_ms = (submission.queue_ms, submission.compute_ms)
                    yield encode_deltas(self._codec, request, rows[0], deltas, times_ms)
        finally:
            self.finish_call(submissions, call)

    # -- OpenAI ----------------------------------------------------------------------------------
    async def chat(self, body: TextBody, call: Call) -> dict[str, Any]:
        """A whole answer; each choice is a job."""
        requests = await self._decode_text(body, call)
        answers = await self.run(requests, call)
        encode = self._encoder(body, call, requests).whole
        is_scored = requests[0].controls.logprobs is not None  # these may have megabytes
        with tracing.stage(call.trace, "encode"):
            return await self.off_loop(encode, answers) if is_scored else encode(answers)

    async def chat_stream(self, body: TextBody, call: Call) -> AsyncIterator[bytes]:
        """Events as the answer grows, after an item once the jobs are accepted, which may be empty.
        Closing the iterator cancels the jobs. While the call's writer is open, events go there."""
        requests = await self._decode_text(body, call)
        submissions = await self.submit(requests, call)
        encoder = self._encoder(body, call, requests)
        timings = partial(slowest, submissions)
        opening = encoder.opening()

        def encode(index: int, deltas: Sequence[ChatDelta]) -> bytes:
            nonlocal opening
            before, opening = opening, b""
            return before + encoder.deltas(index, deltas, timings)

        try:
            if encoder.opens_at_once:
                first, opening = opening, b""
                yield first
            else:
                yield b""
            rows = RowEvents(submissions, encode, call)
            async with aclosing(rows.items()) as items:  # type: ignore[type-var]
                async for events in items:
                    yield events
        finally:
            self.finish_call(submissions, call)

    async def tokenize(self, body: TokenizeBody, call: Call) -> dict[str, Any]:
        return await self._tokenization.tokenize(body, call)

    async def detokenize(self, body: DetokenizeBody, call: Call) -> dict[str, Any]:
        return await self._tokenization.detokenize(body, call)

    def _encoder(
        self, body: TextBody, call: Call, requests: Sequence[ChatRequest]
    ) -> AnswerEncoder:
        return encoder_of(body, call, self._codec.precision, requests, self._codec.logprobs)

    async def _decode_text(self, body: TextBody, call: Call) -> list[ChatRequest]:
        self.check_room(call, body.n)  # before any work is spent on the body
        with tracing.stage(call.trace, "parse"):
            return requests_of(body, self._codec, call.adapters)
