"""Image requests from both wire formats, and the responses with pictures as files.

Pictures are checked and encoded here, in pool threads, never on the engine thread.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from predictors import metrics
from predictors.base import Answer
from predictors.diffusion.checker import CheckedPicture, PictureChecker
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.inputs import steps_called
from predictors.diffusion.limits import PictureLimits, some_text
from predictors.diffusion.request import FP8, ImageParameters, ImageRequest, ImageResult
from predictors.errors import ContentRefused, InvalidRequest
from predictors.observe import tracing
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.seeds import row_seeds
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    Tensor,
    V2Request,
    V2Response,
    count_rows,
)

ImageAnswer = Answer[ImageRequest, ImageResult]

INPUT_TYPES = (
    {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
    {"name": "negative_prompt", "datatype": "BYTES", "shape": [-1]},
    {"name": "seed", "datatype": "INT64", "shape": [-1]},
)
OUTPUT_TYPES = (
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "seed", "datatype": "INT64", "shape": [-1]},
)
IGNORED_PARAMETERS = ("binary_data_output", "timeout", "priority")  # read by the edges
FP8_PRECISION = "float8_e4m3fn"
ROW_FIELDS = {"prompt", "negative_prompt", "seed"}  # may differ by row; all others are shared


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """Both wire formats of one model. Immutable; any thread."""

    model: str
    limits: PictureLimits
    precision: str
    """Of the base weights, as responses show it."""
    writer: PictureWriter
    checker: PictureChecker | None = None
    """None where pictures are sent unseen."""

    # -- V2 --------------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        """One request per row; raises `InvalidRequest` naming the field, and the row where one of
        several is at fault."""
        inputs = InputTensors(request.inputs)
        prompts = inputs.read_text("prompt")
        negatives = inputs.read_optional_text("negative_prompt")
        seeds = inputs.read_ints("seed")
        inputs.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is required", param="prompt")
        num_rows = count_rows(prompt=prompts, negative_prompt=negatives, seed=seeds)
        common, seed = _read_parameters(request.parameters)
        _check_watched(request, common, num_rows)
        rows = [
            ImageParameters(prompt=prompt, negative_prompt=negative, seed=row_seed, **common)
            for prompt, negative, row_seed in zip(
                prompts,
                [None] * num_rows if negatives is None else map(some_text, negatives),
                seeds if seeds is not None else row_seeds(seed, num_rows),
                strict=True,
            )
        ]
        if any(row.negative_prompt is not None for row in rows):
            # the scale is for rows that have a negative prompt; without one a row opts out
            rows = [x if x.negative_prompt else replace(x, true_cfg_scale=None) for x in rows]
        return [self._row(asked, row, num_rows) for row, asked in enumerate(rows)]

    def _row(self, asked: ImageParameters, row: int, num_rows: int) -> ImageRequest:
        try:
            return self.limits.request(asked)
        except InvalidRequest as error:
            if num_rows > 1 and error.param in ROW_FIELDS:
                raise type(error)(error.message, param=error.param, row=row) from error
            raise

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
        parameters: dict[str, str | int | bool] = {
            "width": first.width,
            "height": first.height,
            **self._effort(first),
            "queue_ms": max(answer.queue_ms for answer in answers),
            "compute_ms": max(answer.compute_ms for answer in answers),
            "prompt_tokens_unread": unread(answers),
            "provenance": self.writer.provenance,
            **blanks,
        }
        return V2Response(request.model, request.id, tuple(outputs), parameters, request.version)

    # -- OpenAI ----------------------------------------------------------------------------------
    def decode_images(self, body: ImagesBody) -> list[ImageRequest]:
        """One request per picture."""
        image = ImageParameters(
            prompt=body.prompt,
            negative_prompt=body.negative_prompt,
            width=body.width,
            height=body.height,
            num_inference_steps=body.num_inference_steps,
            guidance_scale=body.guidance_scale,
            true_cfg_scale=body.true_cfg_scale,
            max_sequence_length=body.max_sequence_length,
            output_format=body.output_format,
            output_compression=body.output_compression,
            tier=body.tier,
            metadata=body.metadata,
            partial_images=body.partial_images,
            progress=body.progress,
        )
        seeds = row_seeds(body.seed, body.n)
        return [self.limits.request(replace(image, seed=seed)) for seed in seeds]

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
            **self._effort(first),
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
        # in: text tokens of the prompts; out: latent patches drawn
        text = sum(answer.chunks[0].num_prompt_tokens for answer in answers)
        patch = self.limits.side_multiple
        requests = [answer.request for answer in answers]
        drawn = sum((r.width // patch) * (r.height // patch) for r in requests)
        return {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": drawn,
            "total_tokens": text + drawn,
        }

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


def unread(answers: Sequence[ImageAnswer]) -> int:
    """Tokens of the longest text that were beyond `max_sequence_length`; 0 if all were read."""
    return max(answer.chunks[0].num_unread_tokens for answer in answers)


def _read_parameters(values: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The fields of `ImageParameters` that all rows share, and the first row's seed."""
    parameters = Parameters(values, ignored=IGNORED_PARAMETERS)
    seed = parameters.read_int("seed")
    common = {
        "width": parameters.read_int("width"),
        "height": parameters.read_int("height"),
        "num_inference_steps": parameters.read_int("num_inference_steps"),
        "guidance_scale": parameters.read_float("guidance_scale"),
        "true_cfg_scale": parameters.read_float("true_cfg_scale"),
        "max_sequence_length": parameters.read_int("max_sequence_length"),
        "output_format": parameters.read_text("output_format"),
        "output_compression": parameters.read_int("output_compression"),
        "tier": parameters.read_text("tier"),
        "metadata": parameters.read_text("metadata"),
        "partial_images": parameters.read_int("partial_images"),
        "progress": parameters.read_flag("progress"),
    }
    parameters.reject_unread()
    return common, seed


def _check_watched(request: V2Request, common: Mapping[str, Any], num_rows: int) -> None:
    """Raise `InvalidRequest` for previews or steps that this request's answer can't have."""
    asked = next((name for name in ("partial_images", "progress") if common[name]), None)
    if asked is None:
        return
    if not request.is_streamed:
        raise InvalidRequest(
            f"{asked} needs an answer in parts: ModelStreamInfer over gRPC, or 'stream' of "
            "POST /v1/images/generations",
            param=asked,
        )
    if num_rows > 1:
        raise InvalidRequest(
            f"{asked} is for one picture; the request has {num_rows} rows", param=asked
        )
