"""Image requests from both wire formats, and the responses with pictures as files.

Pictures are checked and encoded here, in pool threads, never on the engine thread.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from predictors import metrics
from predictors.base import Answer
from predictors.diffusion.checker import CheckedPicture, PictureChecker
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.inputs import steps_called
from predictors.diffusion.known_adapters import KnownAdapters
from predictors.diffusion.limits import PictureLimits, some_text
from predictors.diffusion.request import (
    FP8,
    ImageParameters,
    ImageRequest,
    ImageResult,
    LoraScale,
)
from predictors.diffusion.sent_pictures import AskedRow, SentSource, with_blank_source
from predictors.errors import ContentRefused, InvalidRequest
from predictors.observe import tracing
from predictors.protocol.call import ANY_ADAPTER, AdapterAccess
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.lora_fields import NamedScales, read_loras_text
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
PICTURE_TYPES = (
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "mask", "datatype": "BYTES", "shape": [-1]},
)
"""Inputs of a model that edits."""
PICTURE_INPUTS = frozenset(str(tensor["name"]) for tensor in PICTURE_TYPES)
OUTPUT_TYPES = (
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "seed", "datatype": "INT64", "shape": [-1]},
)
IGNORED_PARAMETERS = ("binary_data_output", "timeout", "priority")  # read by the edges
FP8_PRECISION = "float8_e4m3fn"
ROW_FIELDS = {"prompt", "negative_prompt", "seed", "image", "mask"}
"""May differ by row; all others are shared."""


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """Both wire formats of one model. Immutable; any thread."""

    model: str
    limits: PictureLimits
    precision: str
    """Of the base weights, as responses show it."""
    writer: PictureWriter
    adapters: KnownAdapters = field(default_factory=KnownAdapters)
    """Those that requests may name; they come and go."""
    checker: PictureChecker | None = None
    """None where pictures are sent unseen."""

    # -- V2 --------------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        """One request per row; raises `InvalidRequest` naming the field, and the row where one of
        several is at fault. For a request without pictures."""
        return self.requests([row.parameters for row in self.read_v2(request)])

    def read_v2(self, request: V2Request) -> list[AskedRow]:
        """The rows with their pictures as they were sent. Of a row with a picture everything but
        its size is checked."""
        inputs = InputTensors(request.inputs)
        prompts = inputs.read_text("prompt")
        negatives = inputs.read_optional_text("negative_prompt")
        seeds = inputs.read_ints("seed")
        images, masks = inputs.read_files("image"), inputs.read_files("mask")
        inputs.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is required", param="prompt")
        images, masks = _shared(images, len(prompts)), _shared(masks, len(prompts))
        num_rows = count_rows(
            prompt=prompts, negative_prompt=negatives, seed=seeds, image=images, mask=masks
        )
        sources = _sources(images, masks, num_rows)
        common, seed = _read_parameters(request.parameters)
        common["loras"] = self._loras(common["loras"], request.adapters)
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
        asked = [AskedRow(row, sent) for row, sent in zip(rows, sources, strict=True)]
        if images is not None:
            self.requests([with_blank_source(self.limits, row) for row in asked])
        return asked

    def requests(self, rows: Sequence[ImageParameters]) -> list[ImageRequest]:
        """Rows with defaults filled in and checked; raises as `decode_v2`."""
        return [self._row(asked, row, len(rows)) for row, asked in enumerate(rows)]

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

    # -- OpenAI ----------------------------------------------------------------------------------
    def decode_images(
        self, body: ImagesBody, adapters: AdapterAccess = ANY_ADAPTER
    ) -> list[ImageRequest]:
        """One request per picture."""
        return [self.limits.request(asked) for asked in self._asked(body, adapters)]

    def read_edits(self, body: EditsBody, adapters: AdapterAccess = ANY_ADAPTER) -> list[AskedRow]:
        """One row per picture that is drawn; all share the picture that was sent. Everything but
        its size is checked."""
        image, mask = body.images[0], body.mask
        if len(body.images) > 1:
            name = image.where.partition("[")[0]
            problem = f"{name} holds {len(body.images)} pictures; {self.model} takes one"
            raise InvalidRequest(problem, param=name)
        sent = SentSource(
            image.file,
            None if mask is None else mask.file,
            image.where,
            "mask" if mask is None else mask.where,
        )
        rows = [
            AskedRow(replace(asked, strength=body.strength), sent)
            for asked in self._asked(body, adapters)
        ]
        self.limits.request(with_blank_source(self.limits, rows[0]))
        return rows

    def _asked(self, body: ImagesBody, adapters: AdapterAccess) -> list[ImageParameters]:
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
            loras=self._loras(body.loras, adapters),
            metadata=body.metadata,
            partial_images=body.partial_images,
            progress=body.progress,
        )
        seeds = row_seeds(body.seed, body.n)
        return [replace(image, seed=seed) for seed in seeds]

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
            **({} if first.source is None else {"strength": first.strength}),
            "provenance": self.writer.provenance,
            **self._effort(first),
            **({"loras": _used(first)} if first.loras else {}),
        }

    def _loras(self, asked: NamedScales | None, adapters: AdapterAccess) -> tuple[LoraScale, ...]:
        """The adapter in the model's name and those in `asked`, checked. Raises `Forbidden` for one
        that the caller's key may not use."""
        named = adapters.named(self.model, asked)
        return self.adapters.check(LoraScale(*each) for each in named)

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


def _read_parameters(values: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The fields of `ImageParameters` that all rows share, and the first row's seed."""
    parameters = Parameters(values, ignored=IGNORED_PARAMETERS)
    seed = parameters.read_int("seed")
    loras = parameters.read_text("loras")
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
        "loras": None if loras is None else read_loras_text(loras),
        "metadata": parameters.read_text("metadata"),
        "partial_images": parameters.read_int("partial_images"),
        "progress": parameters.read_flag("progress"),
        "strength": parameters.read_float("strength"),
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


def _shared(files: list[bytes] | None, num_rows: int) -> list[bytes] | None:
    """A file per row, where there is one for all rows."""
    return files * num_rows if files is not None and len(files) == 1 else files


def _sources(
    images: Sequence[bytes] | None, masks: Sequence[bytes] | None, num_rows: int
) -> Sequence[SentSource | None]:
    """The pictures of all rows: one object where rows share image and mask."""
    if images is None:
        if masks is not None:
            raise InvalidRequest("input 'mask' needs an input 'image'", param="mask")
        return [None] * num_rows
    blank: Sequence[bytes | None] = [None] * num_rows
    pairs = list(zip(images, blank if masks is None else masks, strict=True))
    if all(image is images[0] and mask is pairs[0][1] for image, mask in pairs):
        return [SentSource(*pairs[0])] * num_rows
    return [SentSource(image, mask, row=row) for row, (image, mask) in enumerate(pairs)]
