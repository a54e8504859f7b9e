"""Encodes a picture's chunks as they come: OpenAI's events and V2's stream of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from predictors.base import Answer
from predictors.diffusion.answers import ImageAnswer
from predictors.diffusion.codec import ImageCodec
from predictors.diffusion.previews import upscaled
from predictors.diffusion.request import (
    ImageRequest,
    ImageResult,
    PartialPicture,
    PictureChunk,
    StepTaken,
)
from predictors.protocol.openai.image_events import ImageEvents
from predictors.protocol.v2.values import Tensor, V2Request, V2Response


class Timings(NamedTuple):
    """Milliseconds so far, rounded up."""

    queue_ms: int
    compute_ms: int


def final_answers(answers: Sequence[Answer[ImageRequest, PictureChunk]]) -> list[ImageAnswer]:
    """The answers with their last chunk alone, the picture."""
    return [
        _answer(x.request, x.chunks[-1], Timings(x.queue_ms, x.compute_ms), x.request_id)
        for x in answers
    ]


def _answer(
    request: ImageRequest, result: PictureChunk, timings: Timings, request_id: str
) -> ImageAnswer:
    assert isinstance(result, ImageResult)
    return Answer(request, (result,), *timings, request_id)


def preview_file(
    codec: ImageCodec, request: ImageRequest, preview: PartialPicture, request_id: str
) -> bytes:
    """A preview as a file of the picture's size, format, quality and mark of origin. Pool
    thread."""
    pixels = upscaled(preview.pixels, request.width, request.height)
    return codec.encode(_answer(request, ImageResult(pixels, 0), Timings(0, 0), request_id))


class EventEncoder:
    """The events of one picture's chunks."""

    def __init__(
        self, codec: ImageCodec, request: ImageRequest, kind: str, request_id: str = ""
    ) -> None:
        """`kind` is one of `ImageEvents`."""
        self._codec = codec
        self._request_id = request_id
        self._request = request
        size = f"{request.width}x{request.height}"
        self._events = ImageEvents(kind, size, request.output_format)

    def encode(self, chunk: PictureChunk, timings: Timings) -> bytes:
        """The event of one chunk. Pool thread; a `StepTaken` on any thread."""
        if isinstance(chunk, StepTaken):
            return self._events.progress(chunk.step, chunk.steps)
        if isinstance(chunk, PartialPicture):
            file = preview_file(self._codec, self._request, chunk, self._request_id)
            return self._events.partial(chunk.index, file)
        answer = _answer(self._request, chunk, timings, self._request_id)
        return self._events.completed(self._codec.encode_images([answer]))


class ResponseEncoder:
    """The V2 responses of one picture's chunks."""

    def __init__(
        self, codec: ImageCodec, row: ImageRequest, request: V2Request, request_id: str = ""
    ) -> None:
        self._codec = codec
        self._request_id = request_id
        self._row = row
        self._request = request

    def encode(self, chunk: PictureChunk, timings: Timings) -> V2Response:
        """The response of one chunk. Pool thread; a `StepTaken` on any thread."""
        if isinstance(chunk, StepTaken):
            return self._response((), step=chunk.step, steps=chunk.steps)
        if isinstance(chunk, PartialPicture):
            file = preview_file(self._codec, self._row, chunk, self._request_id)
            kind = {"content_type": f"image/{self._row.output_format}"}
            outputs = (Tensor("image", "BYTES", (1,), [file], kind),)
            return self._response(outputs, partial_image_index=chunk.index)
        answer = _answer(self._row, chunk, timings, self._request_id)
        return self._codec.encode_v2(self._request, [answer])

    def _response(self, outputs: tuple[Tensor, ...], **parameters: int) -> V2Response:
        asked = self._request
        head = (asked.model, asked.id, outputs, parameters, asked.version)
        return V2Response(*head, is_final=False)
