"""The predictor of a flow-matching picture model: one checkpoint behind every protocol.

It connects codec, preparer and engine; the order of a request is `base`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from predictors import metrics
from predictors.base import Answer, BasePredictor, caller_of
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.placement import announce, place
from predictors.compute.device.sharing import SharedCard
from predictors.diffusion.answers import FP8_PRECISION, OUTPUT_TYPES
from predictors.diffusion.checker import VERDICTS, make_checker
from predictors.diffusion.codec import INPUT_TYPES, PICTURE_INPUTS, PICTURE_TYPES, ImageCodec
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.known_adapters import KnownAdapters
from predictors.diffusion.limits import make_limits
from predictors.diffusion.lora_changes import LoraChanges
from predictors.diffusion.model import DiffusionModel
from predictors.diffusion.request import (
    TIERS,
    ImageRequest,
    ImageResult,
    PictureChunk,
    StepTaken,
)
from predictors.diffusion.sent_pictures import SentRow, SourceReader
from predictors.diffusion.streaming import EventEncoder, ResponseEncoder, Timings, final_answers
from predictors.observe import tracing
from predictors.protocol.call import Call
from predictors.protocol.http.bodies import fail_at
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.lora_fields import MAX_LORAS
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.serving.estimates import Costs
from predictors.serving.submission import Submission
from predictors.settings import Settings
from predictors.workers.pool import Workers

T = TypeVar("T")

SERIES = metrics.ModelSeries(
    operations=("infer", "images", "edits"),
    stages=(
        "receive",
        "prepare",
        "text_encode",
        "vae_encode",
        "denoise",
        "preview",
        "vae_decode",
        "check",
        "image_encode",
    ),
    caches=("prompt_embedding",),
    own={
        metrics.denoise_steps_total: ((),),
        metrics.image_pixels: ((),),
        metrics.inference_steps: ((),),
        metrics.ttfi_seconds: ((),),
        metrics.loras_loaded: ((),),
        metrics.denoise_step_seconds: tuple((size,) for size in metrics.RESOLUTIONS),
        metrics.images_checked_total: tuple((verdict,) for verdict in VERDICTS),
        metrics.images_total: tuple((size, t) for size in metrics.RESOLUTIONS for t in TIERS),
    },
)
"""Label values and series that a text-to-image model adds to those of every model."""


class DiffusionPredictor(BasePredictor[ImageRequest, DiffusionWork, PictureChunk]):
    """Text to image with one `DiffusionModel`, whose weights are read in `load`."""

    task = "flux"  # as settings, metrics and the admin state name it
    series = SERIES
    file_inputs: ClassVar[frozenset[str]] = PICTURE_INPUTS

    def __init__(
        self,
        name: str,
        model: DiffusionModel,
        settings: Settings,
        workers: Workers | None = None,
    ) -> None:
        own = settings.flux
        placement = place(settings.compute)
        limits = make_limits(model.config, own, placement.device)
        adapters = KnownAdapters(name)
        self._preparer = Preparer(model, placement.dtype, limits.tiers)
        self._checker = make_checker(name, own)
        writer = PictureWriter.of(name, own)
        self._codec = ImageCodec(name, limits, placement.precision, writer, self._checker, adapters)
        engine = DiffusionEngine(name, model, limits, self._preparer, own, placement)
        self._engine = engine
        self._loras = LoraChanges(name, model, engine, adapters, own.adapter_rank)
        super().__init__(name, engine, settings, workers)
        self._sources = SourceReader(limits, settings.images, workers, self.off_loop)
        announce(name, placement)
        for tier in limits.tiers.loaded:
            metrics.tier_info.labels(name, tier, self._codec.precision_of(tier)).set(1)

    def share(self, card: SharedCard) -> None:
        self._engine.share(card)

    # -- adapters ---------------------------------------------------------------------------------
    @property
    def adapter_names(self) -> Sequence[str]:
        return self._loras.known.names

    @property
    def loras(self) -> Sequence[AdapterSummary]:
        """Descriptions of the adapters that requests may use."""
        return self._loras.known.summaries

    def add_lora(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        """As `LoraChanges.add`."""
        return self._loras.add(name, path, root)

    def remove_lora(self, name: str) -> AdapterSummary:
        """As `LoraChanges.remove`."""
        return self._loras.remove(name)

    async def submit(
        self, requests: Sequence[ImageRequest], call: Call
    ) -> list[Submission[DiffusionWork, PictureChunk]]:
        """As the base's. None of the requests' adapters is removed before they are queued."""
        used = [lora for request in requests for lora in request.loras]
        if not used:
            return await super().submit(requests, call)
        with self._loras.known.held(used):
            return await super().submit(requests, call)

    def finish_call(
        self, submissions: Sequence[Submission[DiffusionWork, PictureChunk]], call: Call
    ) -> None:
        for submission in submissions:
            used = submission.work.request.loras
            if used and isinstance(submission.last, ImageResult):
                self._loras.known.count_picture(used)
        super().finish_call(submissions, call)

    # -- hooks -----------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        return self._codec.decode_v2(request)

    async def read_rows(
        self, request: V2Request, call: Call, *, is_small: bool
    ) -> list[ImageRequest]:
        """The rows of a request with or without pictures, which the workers decode."""
        if not any(tensor.name in PICTURE_INPUTS for tensor in request.inputs):
            return await super().read_rows(request, call, is_small=is_small)
        rows = await self.off_loop(self._codec.read_v2, request, is_large=not is_small)
        return await self._decode_pictures(rows, call)

    @contextmanager
    def _holding_places(self, rows: int, call: Call) -> Iterator[None]:
        """Hold places in the queue while pictures are decoded; `submit` then reserves its own.
        Raises what `submit` would."""
        caller = caller_of(call.caller, call.weight, call.priority)
        self.host.reserve(rows, caller, deadline=call.deadline)
        try:
            yield
        finally:
            self.host.release(rows, caller)

    async def _decode_pictures(self, rows: Sequence[SentRow], call: Call) -> list[ImageRequest]:
        """The requests of rows with pictures; their sizes go to the call's log fields."""
        late = "the deadline passed before the pictures were decoded"
        with self._holding_places(len(rows), call):
            async with fail_at(call.deadline, late):
                decoded, sizes = await self._sources.read(rows)
        shown = [f"{width}x{height}" for width, height in sizes]
        call.log_fields["source_size"] = shown if len(shown) > 1 else shown[0]
        call.log_fields["masked"] = any(
            row.source and row.source.mask is not None for row in decoded
        )
        return self._codec.requests(decoded)

    def prepare(self, request: ImageRequest) -> DiffusionWork:
        """Token ids, noise and denoise plan. Pool thread."""
        return self._preparer.prepare(request)

    def costs(self, requests: Sequence[ImageRequest]) -> Costs:
        """Tokens of all passes, by the form of their weights."""
        found: defaultdict[str, float] = defaultdict(float)
        for request in requests:
            found[self._preparer.form_of(request)] += self._preparer.cost(request)
        return found

    def encode_v2(
        self, request: V2Request, answers: list[Answer[ImageRequest, PictureChunk]]
    ) -> V2Response:
        return self._codec.encode_v2(request, final_answers(answers))

    def log_fields(self, work: DiffusionWork, last: PictureChunk | None) -> Mapping[str, int | str]:
        request = work.request
        fields: dict[str, int | str] = {
            "width": request.width,
            "height": request.height,
            "steps": request.num_inference_steps,
            "tier": request.tier,
        }
        if request.loras:
            fields["loras"] = ",".join(f"{each.name}:{each.scale:g}" for each in request.loras)
        if request.partial_images:
            fields["partial_images"] = request.partial_images
        if isinstance(last, ImageResult):
            fields["prompt_tokens"] = last.num_prompt_tokens
        return fields

    def prompt(self, request: ImageRequest) -> str:
        """The prompt, without the negative prompt."""
        return request.prompt

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        with tracing.stage(call.trace, "parse"):
            requests = self._codec.decode_images(body, call.adapters)
        return await self._draw(requests, call)

    async def edits(self, body: EditsBody, call: Call) -> dict[str, Any]:
        return await self._draw(await self._read_edit(body, call), call)

    async def _read_edit(self, body: EditsBody, call: Call) -> list[ImageRequest]:
        self.check_room(call, body.n)  # before any work is spent on pictures
        with tracing.stage(call.trace, "parse"):
            rows = self._codec.read_edits(body, call.adapters)
            return await self._decode_pictures(rows, call)

    async def _draw(self, requests: Sequence[ImageRequest], call: Call) -> dict[str, Any]:
        answers = await self.run(requests, call)
        with tracing.stage(call.trace, "encode"):
            return await self.off_loop(self._codec.encode_images, final_answers(answers))

    async def images_stream(self, body: ImagesBody, call: Call) -> AsyncIterator[bytes]:
        """An empty item once the job is accepted, and then its events. Closing the iterator cancels
        the job."""
        with tracing.stage(call.trace, "parse"):
            (request,) = self._codec.decode_images(body, call.adapters)
        async with aclosing(self._stream_events(request, body, call)) as events:
            async for event in events:
                yield event

    async def edits_stream(self, body: EditsBody, call: Call) -> AsyncIterator[bytes]:
        """As `images_stream`, for an edit."""
        (request,) = await self._read_edit(body, call)
        async with aclosing(self._stream_events(request, body, call)) as events:
            async for event in events:
                yield event

    async def _stream_events(
        self, request: ImageRequest, body: ImagesBody, call: Call
    ) -> AsyncGenerator[bytes]:
        encoder = EventEncoder(self._codec, request, body.events, call.request_id)
        async with aclosing(self._stream_chunks(request, call, encoder.encode)) as events:
            async for event in events:
                yield event or b""

    async def infer_stream(self, request: V2Request, call: Call) -> AsyncGenerator[V2Response]:
        """The responses to one V2 request, the complete one last."""
        rows = await self._decode(request, call)
        if not rows[0].is_watched:
            yield await self._encode(request, await self.run(rows, call))
            return
        encoder = ResponseEncoder(self._codec, rows[0], request, call.request_id)
        async with aclosing(self._stream_chunks(rows[0], call, encoder.encode)) as responses:
            async for response in responses:
                if response is not None:
                    yield response

    async def _stream_chunks(
        self, request: ImageRequest, call: Call, encode: Callable[[PictureChunk, Timings], T]
    ) -> AsyncGenerator[T | None]:
        """Yield None once the job is accepted, and then its encoded chunks. Pictures are encoded in
        pool threads."""
        submissions = await self.submit([request], call)
        (submission,) = submissions
        try:
            yield None
            async with aclosing(submission.chunks()) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    timings = Timings(submission.queue_ms, submission.compute_ms)
                    if isinstance(chunk, StepTaken):
                        yield encode(chunk, timings)
                    else:
                        yield await self.off_loop(encode, chunk, timings)
        finally:
            self.finish_call(submissions, call)

    def stop(self) -> None:
        super().stop()
        if self._checker is not None:
            self._checker.close()

    def get_parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return self._codec.limits.parameter_schemas()

    def get_limits(self) -> Mapping[str, Any]:
        capacity = self.settings.queue.capacity
        loras = {"loras": list(self.adapter_names), "max_loras": MAX_LORAS}
        return {**self._codec.limits.summary(), **loras, "queue_capacity": capacity}

    def describe(self) -> dict[str, object]:
        tiers = self._codec.limits.tiers.loaded
        precision = {tier: self._codec.precision_of(tier) for tier in tiers}
        is_narrow = self.settings.flux.conditioning_precision == "fp8"
        conditioning = FP8_PRECISION if is_narrow else self._codec.precision
        own = {"precision": precision, "conditioning_precision": conditioning}
        return super().describe() | own

    def get_input_types(self) -> list[dict[str, Any]]:
        edits = self._codec.limits.edits
        return [
            dict(tensor) for tensor in (*INPUT_TYPES, *(PICTURE_TYPES if edits.is_loaded else ()))
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [dict(tensor) for tensor in OUTPUT_TYPES]
