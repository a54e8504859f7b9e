"""The responses to picture requests in both wire formats: files, usage, and what was done.

Pictures are checked and encoded here, in pool threads, never on the engine thread.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from predictors import metrics
from predictors.base import Answer
from predictors.diffusion.checker import CheckedPicture, PictureChecker
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.inputs import steps_called
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.request import FP8, ImageRequest, ImageResult
from predictors.errors import ContentRefused
from predictors.observe import tracing
from predictors.protocol.v2.values import Tensor, V2Request, V2Response

ImageAnswer = Answer[ImageRequest, ImageResult]

OUTPUT_TYPES = (
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "seed", "datatype": "INT64", "shape": [-1]},
)
FP8_PRECISION = "float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class PictureAnswers:
    """Answers of one model as responses. Immutable; any thread."""

    model: str
    limits: PictureLimits
    precision: str
    """Precision of the base weights, as responses show it."""
    writer: PictureWriter
    checker: PictureChecker | None = None
    """None where pictures are sent unseen."""

    # -- both wire formats -----------------------------------------------------------------------
    def encode_v2(self, request: V2Request, answers: Sequence[ImageAnswer]) -> V2Response:
        """Files and seeds in row order, and the parameters that all rows share. Pool thread."""
        first, n = answers[0].request, len(answers)
        wanted = request.outputs or ("image", "seed")
        outputs = []
        blanks: dict[str, str] = {}
        if "image" in wanted:
            pictures = self._checked(answers)
            files = [self._file(*pair) for pair in zip(answers, pictures, strict=True)]
            if self.checker is not None and self.checker.blanks:
                rows = [str(row) for row, each in enumerate(pictures) if each.is_blank]
                blanks = {"blank_rows": ",".join(rows)}
            kind = {"content_type": f"image/{first.output_format}"}
            outputs.append(Tensor("image", "BYTES", (n,), files, kind))
        if "seed" in wanted:
            outputs.append(Tensor("seed", "INT64", (n,), [a.request.seed for a in answers]))
        sizes = {(answer.request.width, answer.request.height) for answer in answers}
        parameters: dict[str, str | int | bool] = {
            **({"width": first.width, "height": first.height} if len(sizes) == 1 else {}),
            **({} if first.source is None else {"strength": f"{first.strength:g}"}),
            **self._effort(first),
            **({"loras": json.dumps(_used(first))} if first.loras else {}),
            "queue_ms": max(answer.queue_ms for answer in answers),
            "compute_ms": max(answer.compute_ms for answer in answers),
            "prompt_tokens_unread": unread(answers),
            "provenance": self.writer.provenance,
            **blanks,
        }
        return V2Response(request.model, request.id, tuple(outputs), parameters, request.version)

    def encode_images(self, answers: Sequence[ImageAnswer]) -> dict[str, Any]:
        """The JSON of the response. Pool thread."""
        first = answers[0].request
        pairs = zip(answers, self._checked(answers), strict=True)
        return {
            "created": int(time.time()),
            "data": [self._entry(answer, picture) for answer, picture in pairs],
            "output_format": first.output_format,
            "size": f"{first.width}x{first.height}",
            "usage": self._usage(answers),
            "timings": {
                "queue_ms": max(answer.queue_ms for answer in answers),
                "compute_ms": max(answer.compute_ms for answer in answers),
            },
            "prompt_tokens_unread": unread(answers),
            "provenance": self.writer.provenance,
            **({} if first.source is None else {"strength": first.strength}),
            **self._effort(first),
            **({"loras": _used(first)} if first.loras else {}),
        }

    def _entry(self, answer: ImageAnswer, picture: CheckedPicture) -> dict[str, Any]:
        file = base64.b64encode(self._file(answer, picture)).decode("ascii")
        entry: dict[str, Any] = {"b64_json": file, "seed": answer.request.seed}
        if self.checker is not None and self.checker.blanks:
            entry["blank"] = picture.is_blank
        return entry

    def _effort(self, request: ImageRequest) -> dict[str, str | int]:
        # the cost of the picture, as both protocols show it
        return {
            "tier": request.tier,
            "precision": self.precision_of(request.tier),
            "num_inference_steps": request.num_inference_steps,
            "num_model_steps": sum(steps_called(request)),
        }

    def precision_of(self, tier: str) -> str:
        """The type of the inputs of the transformer's matrix products, as responses show it."""
        is_fp8 = self.limits.tiers.form_of(tier) == FP8
        return FP8_PRECISION if is_fp8 else self.precision

    def _usage(self, answers: Sequence[ImageAnswer]) -> dict[str, Any]:
        # in: text tokens of the prompts, latent patches read; out: latent patches drawn
        text = sum(answer.chunks[0].num_prompt_tokens for answer in answers)
        requests = [answer.request for answer in answers]
        drawn = sum(self._patches(r.width, r.height) for r in requests)
        sources = [r.source.pixels.shape for r in requests if r.source is not None]
        read = sum(self._patches(width, height) for height, width, _ in sources)
        return {
            "input_tokens": text + read,
            "input_tokens_details": {"text_tokens": text, "image_tokens": read},
            "output_tokens": drawn,
            "total_tokens": text + read + drawn,
        }

    def _patches(self, width: int, height: int) -> int:
        patch = self.limits.side_multiple
        return (width // patch) * (height // patch)

    # -- files -----------------------------------------------------------------------------------
    def encode(self, answer: ImageAnswer) -> bytes:
        """The answer's picture, checked, as a file of the format that was asked for. Pool
        thread."""
        [picture] = self._checked([answer])
        return self._file(answer, picture)

    def _checked(self, answers: Sequence[ImageAnswer]) -> list[CheckedPicture]:
        """The pictures that may be sent. Raises `ContentRefused` naming the row of several."""
        drawn = [answer.chunks[0].pixels for answer in answers]
        if self.checker is None:
            return [CheckedPicture(pixels) for pixels in drawn]
        checked = []
        for row, pixels in enumerate(drawn):
            try:
                checked.append(self.checker.check(pixels))
            except ContentRefused as error:
                if len(answers) > 1:
                    raise ContentRefused(error.message, row=row) from error
                raise
        return checked

    def _file(self, answer: ImageAnswer, picture: CheckedPicture) -> bytes:
        started = time.monotonic()
        file = self.writer.write(picture.pixels, answer.request, answer.request_id)
        stage = metrics.stage_seconds.labels(self.model, "image_encode")
        stage.observe(time.monotonic() - started, tracing.exemplar())
        return file


def _used(request: ImageRequest) -> list[dict[str, str | float]]:
    return [{"name": each.name, "scale": each.scale} for each in request.loras]


def unread(answers: Sequence[ImageAnswer]) -> int:
    """Tokens of the longest text that were beyond `max_sequence_length`; 0 if all were read."""
    return max(answer.chunks[0].num_unread_tokens for answer in answers)
