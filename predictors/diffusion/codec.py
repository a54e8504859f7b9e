"""Image requests from both wire formats: names, types and rows, checked.

`PictureAnswers`, which the codec extends, makes the responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from predictors.diffusion.answers import PictureAnswers
from predictors.diffusion.known_adapters import KnownAdapters
from predictors.diffusion.limits import some_text
from predictors.diffusion.request import (
    ImageParameters,
    ImageRequest,
    LoraScale,
)
from predictors.diffusion.sent_pictures import SentRow, SentSource, with_blank_source
from predictors.errors import InvalidRequest
from predictors.protocol.call import ANY_ADAPTER, AdapterAccess
from predictors.protocol.openai.check_fields import no_check
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.lora_fields import NamedScales, read_loras_text
from predictors.protocol.seeds import row_seeds
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    V2Request,
    count_rows,
)

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
IGNORED_PARAMETERS = ("binary_data_output", "timeout", "priority")  # read before the codec
ROW_FIELDS = {"prompt", "negative_prompt", "seed", "image", "mask"}
"""May differ by row; all others are shared."""


@dataclass(frozen=True, slots=True)
class ImageCodec(PictureAnswers):
    """Both wire formats of one model. Immutable; any thread."""

    adapters: KnownAdapters = field(default_factory=KnownAdapters)
    """The adapters that requests may name at the moment."""

    # -- V2 --------------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        """One request per row; raises `InvalidRequest` naming the field, and the row where one of
        several is at fault. For a request without pictures."""
        return self.requests([row.parameters for row in self.read_v2(request)])

    def read_v2(self, request: V2Request) -> list[SentRow]:
        """The rows with their pictures as they were sent. Everything is checked but the sizes of
        pictures."""
        inputs = InputTensors(request.inputs)
        prompts = inputs.read_text("prompt")
        negatives = inputs.read_optional_text("negative_prompt")
        seeds = inputs.read_ints("seed")
        images, masks = inputs.read_files("image"), inputs.read_files("mask")
        inputs.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is required", param="prompt")
        images, masks = _file_per_row(images, len(prompts)), _file_per_row(masks, len(prompts))
        num_rows = count_rows(
            prompt=prompts, negative_prompt=negatives, seed=seeds, image=images, mask=masks
        )
        sources = _sources(images, masks, num_rows)
        common, seed = _read_parameters(request.parameters)
        common["loras"] = self._loras(common["loras"], request.adapters)
        _check_previews(request, common, num_rows)
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
            # the shared scale is for rows with a negative prompt: the others take no guidance
            rows = [x if x.negative_prompt else replace(x, true_cfg_scale=None) for x in rows]
        sent_rows = [SentRow(row, sent) for row, sent in zip(rows, sources, strict=True)]
        if images is not None:
            self.requests([with_blank_source(self.limits, row) for row in sent_rows])
        return sent_rows

    def requests(self, rows: Sequence[ImageParameters]) -> list[ImageRequest]:
        """The requests of rows, with defaults filled in and checked; raises as `decode_v2`."""
        return [self._resolve(each, row, len(rows)) for row, each in enumerate(rows)]

    def _resolve(self, parameters: ImageParameters, row: int, num_rows: int) -> ImageRequest:
        try:
            return self.limits.resolve(parameters)
        except InvalidRequest as error:
            if num_rows > 1 and error.param in ROW_FIELDS:
                raise type(error)(error.message, param=error.param, row=row) from error
            raise

    # -- OpenAI ----------------------------------------------------------------------------------
    def decode_images(
        self, body: ImagesBody, adapters: AdapterAccess = ANY_ADAPTER
    ) -> list[ImageRequest]:
        """One request per picture."""
        return [self.limits.resolve(each) for each in self._image_parameters(body, adapters)]

    def read_edits(self, body: EditsBody, adapters: AdapterAccess = ANY_ADAPTER) -> list[SentRow]:
        """One row per picture to draw; all share the picture that was sent. Everything is checked
        but its size."""
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
            SentRow(replace(parameters, strength=body.strength), sent)
            for parameters in self._image_parameters(body, adapters)
        ]
        self.limits.resolve(with_blank_source(self.limits, rows[0]))
        return rows

    def _image_parameters(self, body: ImagesBody, adapters: AdapterAccess) -> list[ImageParameters]:
        if body.asks_check and self.checker is None:
            raise no_check(body.asks_check)
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

    def _loras(self, asked: NamedScales | None, adapters: AdapterAccess) -> tuple[LoraScale, ...]:
        """The adapter in the model's name and those in `asked`, checked. Raises `Forbidden` for one
        that the caller's key may not use."""
        named = adapters.named(self.model, asked)
        return self.adapters.check(LoraScale(*each) for each in named) if named else ()


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


def _check_previews(request: V2Request, common: Mapping[str, Any], num_rows: int) -> None:
    """Raise `InvalidRequest` for previews or progress that the answer can't hold."""
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


def _file_per_row(files: list[bytes] | None, num_rows: int) -> list[bytes] | None:
    """The files, one per row: a single file is repeated."""
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
