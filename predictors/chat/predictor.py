"""A chat model behind every protocol: puts codec, inputs, engine and reader together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

from predictors import metrics
from predictors.base import INLINE_BYTES, Answer, BasePredictor, Submission
from predictors.chat.codec import INPUT_TYPES, OUTPUT_TYPES, ChunkEncoder, Codec
from predictors.chat.detokenize import AnswerReader, Vocabulary
from predictors.chat.engine import ChatEngine
from predictors.chat.inputs import ChatWork, Inputs
from predictors.chat.limits import precision_of
from predictors.chat.metrics import SERIES
from predictors.chat.model import ChatModel
from predictors.chat.pixels import PreparedPicture
from predictors.chat.request import ChatDelta, ChatRequest, Picture
from predictors.chat.template import check_spelling
from predictors.compute.device.placement import announce, place
from predictors.observe import tracing
from predictors.protocol.call import Call
from predictors.protocol.images import Pixels, decoding_bytes
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.tasks import DECODE_PICTURE
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.settings import Settings
from predictors.workers.pool import LARGE_TASK_BYTES, Workers

DIGEST_INLINE_BYTES = 256 * 1024  # of a file that is hashed on the event loop: a quarter of a ms


class ChatPredictor(BasePredictor[ChatRequest, ChatWork, ChatDelta]):
    """Serves a `ChatModel`. Making one reads no weights."""

    room: ClassVar[str] = "qwen_vl"
    series = SERIES
    file_inputs: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(
        self, name: str, model: ChatModel, settings: Settings, workers: Workers | None = None
    ) -> None:
        placement = place(settings.compute)
        engine = ChatEngine(name, model, settings.qwen_vl, placement)
        super().__init__(name, engine, settings, workers)
        announce(name, placement)
        self._inputs = Inputs(
            name,
            model,
            settings.qwen_vl,
            settings.images,
            engine.max_context,
            on_device=placement.is_cuda,
        )
        self._inputs.check_template()
        self._vocabulary = Vocabulary(model.tokenizer)
        check_spelling(self._vocabulary.bytes_of, model.tokenizer)
        precision = precision_of(settings.qwen_vl, placement)
        self._codec = Codec(model.sampling, precision, settings.images.max_images)
        self._detokenize_seconds = metrics.stage_seconds.labels(name, "detokenize")

    # -- the room's hooks ------------------------------------------------------------------------
    def get_input_types(self) -> list[dict[str, Any]]:
        """Names, types and shapes of the V2 inputs."""
        return INPUT_TYPES

    def get_output_types(self) -> list[dict[str, Any]]:
        """Names, types and shapes of the V2 outputs."""
        return OUTPUT_TYPES

    def decode_v2(self, request: V2Request) -> list[ChatRequest]:
        """The rows of a V2 request."""
        return self._codec.decode_v2(request)

    def prepare(self, request: ChatRequest) -> ChatWork:
        """Tokens, positions and patches, pictures decoded on this thread too."""
        return self._inputs.prepare(request)

    async def prepare_row(self, request: ChatRequest) -> ChatWork:
        """The same off the event loop, pictures decoded one after the other in worker processes."""
        made: list[PreparedPicture] = []
        is_large = request.num_chars > INLINE_BYTES
        if self.workers is None:
            return await self.off_loop(self.prepare, request, is_large=is_large)
        for picture in request.pictures:
            digest = await self._digest(picture)
            kept = self._inputs.kept(digest)
            if kept is not None:
                made.append(kept)
                continue
            is_last = len(made) + 1 == len(request.pictures)
            num_bytes = decoding_bytes(picture.raw, self.settings.images.max_pixels)
            is_large = is_large or num_bytes > LARGE_TASK_BYTES
            async with self.workers.memory(num_bytes):  # until what was decoded is cut
                limits = self.settings.images
                pixels = await self.workers.run_within(
                    DECODE_PICTURE, picture.raw, limits, "image", memory_bytes=num_bytes
                )
                if is_last:  # together with what comes next: a thread less to wait for
                    rest = (request, made, digest, pixels)
                    return await self.off_loop(self._cut_and_assemble, *rest, is_large=is_large)
                cut = self._inputs.cut
                made.append(await self.off_loop(cut, digest, pixels, is_large=is_large))
        return await self.off_loop(self._inputs.assemble, request, made, is_large=is_large)

    async def _digest(self, picture: Picture) -> bytes:
        if len(picture.raw) <= DIGEST_INLINE_BYTES:
            return picture.digest()
        return await self.off_loop(picture.digest)

    def _cut_and_assemble(
        self, request: ChatRequest, made: Sequence[PreparedPicture], digest: bytes, pixels: Pixels
    ) -> ChatWork:
        return self._inputs.assemble(request, [*made, self._inputs.cut(digest, pixels)])

    def encode_v2(
        self, request: V2Request, answers: list[Answer[ChatRequest, ChatDelta]]
    ) -> V2Response:
        """The response of a V2 request."""
        return self._codec.encode_v2(request, answers)

    def reader(self, work: ChatWork) -> AnswerReader:
        """What turns this job's tokens into text."""
        return AnswerReader(self._vocabulary, work.stop, self._observe_detokenize)

    def _observe_detokenize(self, seconds: float) -> None:
        self._detokenize_seconds.observe(seconds, tracing.exemplar())

    def log_fields(self, work: ChatWork, last: ChatDelta | None) -> Mapping[str, int | str]:
        """Tokens and pictures."""
        fields: dict[str, int | str] = {
            "prompt_tokens": work.num_prompt_tokens,
            "completion_tokens": 0 if last is None else last.completion_tokens,
            "pictures": len(work.pictures),
            "max_tokens": work.max_tokens,
        }
        if last is not None and last.finish_reason is not None:
            fields["finish_reason"] = last.finish_reason
        return fields

    def prompt(self, request: ChatRequest) -> str:
        """All turns, one per line, pictures left out."""
        return "\n".join(
            f"{turn.role}: {''.join(part for part in turn.parts if isinstance(part, str))}"
            for turn in request.messages
        )

    # -- OpenAI ----------------------------------------------------------------------------------
    async def chat(self, body: ChatBody, call: Call) -> dict[str, Any]:
        """A whole `chat.completion`; `n` choices are `n` jobs."""
        answers = await self.run(await self._decode_chat(body, call), call)
        with tracing.stage(call.trace, "encode"):
            return self._codec.encode_chat(body, call, answers)

    async def chat_stream(self, body: ChatBody, call: Call) -> AsyncIterator[bytes]:
        """Events as the text grows; the first one comes with the first token, so that a failure
        before it still gets a status. Closing the iterator cancels the jobs.
        """
        requests = await self._decode_chat(body, call)
        submissions = await self.submit(requests, call)
        encoder = ChunkEncoder(body, call, self._codec.precision, requests)
        timings = partial(_slowest, submissions)
        opening = encoder.opening()
        try:
            async with aclosing(_interleaved(submissions)) as batches:  # type: ignore[type-var]
                async for index, deltas in batches:
                    yield opening + encoder.deltas(index, deltas, timings)
                    opening = b""
        finally:
            self.finish_call(submissions, call)

    async def _decode_chat(self, body: ChatBody, call: Call) -> list[ChatRequest]:
        self.host.check_accepting(body.n)  # before any work is spent on the body
        with tracing.stage(call.trace, "parse"):
            return self._codec.decode_chat(body)


async def _interleaved(
    submissions: Sequence[Submission[ChatWork, ChatDelta]],
) -> AsyncIterator[tuple[int, Sequence[ChatDelta]]]:
    """The deltas of all rows as they come, with the row's index; raises the first failure."""
    if len(submissions) == 1:
        async with aclosing(submissions[0].batches()) as batches:  # type: ignore[type-var]
            async for deltas in batches:
                yield 0, deltas
        return
    streams = [row.batches() for row in submissions]
    pending = {asyncio.create_task(_next(stream)): i for i, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, found = pending.pop(task), task.result()
                if found is not None:
                    yield index, found
                    pending[asyncio.create_task(_next(streams[index]))] = index
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]


async def _next(stream: AsyncIterator[Sequence[ChatDelta]]) -> Sequence[ChatDelta] | None:
    return await anext(stream, None)


def _slowest(submissions: Sequence[Submission[ChatWork, ChatDelta]]) -> dict[str, int]:
    return {
        "queue_ms": max(row.queue_ms for row in submissions),
        "compute_ms": max(row.compute_ms for row in submissions),
    }
