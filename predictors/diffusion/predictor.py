"""The predictor of a flow-matching picture model: one checkpoint behind every protocol.

It connects codec, preparer and engine; the order of a request is `base`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from predictors import metrics
from predictors.base import Answer, BasePredictor
from predictors.compute.device.placement import announce, place
from predictors.diffusion.checker import VERDICTS, make_checker
from predictors.diffusion.codec import FP8_PRECISION, INPUT_TYPES, OUTPUT_TYPES, ImageCodec
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.limits import make_limits
from predictors.diffusion.model import DiffusionModel
from predictors.diffusion.request import (
    TIERS,
    ImageRequest,
    ImageResult,
    PictureChunk,
    StepTaken,
)
from predictors.diffusion.streaming import EventEncoder, ResponseEncoder, Timings, finished
from predictors.observe import tracing
from predictors.protocol.call import Call
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.serving.estimates import Costs
from predictors.settings import Settings
from predictors.workers.pool import Workers

T = TypeVar("T")

SERIES = metrics.ModelSeries(
    operations=("infer", "images"),
    stages=(
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
        self._preparer = Preparer(model, placement.dtype, limits.tiers)
        self._checker = make_checker(name, own)
        writer = PictureWriter.of(name, own)
        self._codec = ImageCodec(name, limits, placement.precision, writer, self._checker)
        engine = DiffusionEngine(name, model, limits, self._preparer, own, placement)
        super().__init__(name, engine, settings, workers)
        announce(name, placement)
        for tier in limits.tiers.loaded:
            metrics.tier_info.labels(name, tier, self._codec.precision_of(tier)).set(1)

    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        return self._codec.decode_v2(request)

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
        return self._codec.encode_v2(request, finished(answers))

    def log_fields(self, work: DiffusionWork, last: PictureChunk | None) -> Mapping[str, int | str]:
        request = work.request
        fields: dict[str, int | str] = {
            "width": request.width,
            "height": request.height,
            "steps": request.num_inference_steps,
            "tier": request.tier,
        }
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
            requests = self._codec.decode_images(body)
        answers = await self.run(requests, call)
        with tracing.stage(call.trace, "encode"):
            return await self.off_loop(self._codec.encode_images, finished(answers))

    async def images_stream(self, body: ImagesBody, call: Call) -> AsyncIterator[bytes]:
        """Events as the picture grows, after an empty item once its job is accepted. Closing the
        iterator cancels the job."""
        with tracing.stage(call.trace, "parse"):
            (request,) = self._codec.decode_images(body)
        encoder = EventEncoder(self._codec, request, body.events, call.request_id)
        async with aclosing(self._parts(request, call, encoder.encode)) as events:
            async for event in events:
                yield event or b""

    async def infer_stream(self, request: V2Request, call: Call) -> AsyncGenerator[V2Response]:
        """The responses to one V2 request, the complete one last."""
        rows = await self._decode(request, call)
        if not rows[0].is_watched:
            yield await self._encode(request, await self.run(rows, call))
            return
        encoder = ResponseEncoder(self._codec, rows[0], request, call.request_id)
        async with aclosing(self._parts(rows[0], call, encoder.encode)) as responses:
            async for response in responses:
                if response is not None:
                    yield response

    async def _parts(
        self, request: ImageRequest, call: Call, encode: Callable[[PictureChunk, Timings], T]
    ) -> AsyncGenerator[T | None]:
        """None once the job is accepted, and then its chunks, encoded in pool threads but for
        those that are small."""
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
        return {**self._codec.limits.summary(), "queue_capacity": capacity}

    def describe(self) -> dict[str, object]:
        tiers = self._codec.limits.tiers.loaded
        precision = {tier: self._codec.precision_of(tier) for tier in tiers}
        is_narrow = self.settings.flux.conditioning_precision == "fp8"
        conditioning = FP8_PRECISION if is_narrow else self._codec.precision
        own = {"precision": precision, "conditioning_precision": conditioning}
        return super().describe() | own

    def get_input_types(self) -> list[dict[str, Any]]:
        return [dict(tensor) for tensor in INPUT_TYPES]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [dict(tensor) for tensor in OUTPUT_TYPES]
