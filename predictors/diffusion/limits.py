"""The limits and defaults of one checkpoint, from its config and the settings, and their checks.

`PictureLimits.resolve` is the only way from a caller's parameters to an `ImageRequest`, so that V2
and OpenAI callers get the same defaults and refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from predictors.compute.kernels.fp8 import has_fp8_units
from predictors.diffusion.editing import NO_EDITS, Edits, Size, choose_edits
from predictors.diffusion.file_options import check_file_options, file_schemas
from predictors.diffusion.model import CheckpointConfig
from predictors.diffusion.request import (
    DEFAULT,
    FILL,
    MAX_PROMPT_BYTES,
    ImageParameters,
    ImageRequest,
    Tiers,
    check_prompt,
    check_range,
)
from predictors.diffusion.tiers import choose_tiers
from predictors.errors import InvalidRequest
from predictors.protocol.seeds import SEED_SCHEMA, row_seeds
from predictors.settings import FluxSettings, InvalidSetting

T = TypeVar("T")

CPU = torch.device("cpu")
MAX_SCALE = 100
NEGATIVE_PROMPT_SCALE = 4.0  # true_cfg_scale when a negative prompt comes without one


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """The limits and defaults of one checkpoint under the settings; sides in pixels. Immutable."""

    default_width: int
    default_height: int
    default_steps: int
    default_guidance: float
    default_sequence_length: int
    max_sequence_length: int
    side_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    sizes: tuple[tuple[int, int], ...]
    """(width, height) that are compiled and warmed."""
    refuses_unpromised: bool
    tiers: Tiers
    edits: Edits = NO_EDITS
    has_checker: bool = False
    """True if pictures are judged before they are sent."""

    @property
    def longest_sequence(self) -> int:
        """Text tokens and latent patches of the largest promised size, and of its reference."""
        return self.default_sequence_length + max(self.promised_patches)

    @property
    def promised(self) -> tuple[tuple[Size, Size], ...]:
        """The sizes that are compiled and warmed, each with that of a picture read beside it, or
        with (0, 0) for none."""
        pairs = [(size, self.edits.reference_of(self, *size)) for size in self.sizes]
        return tuple(dict.fromkeys([*((size, (0, 0)) for size in self.sizes), *pairs]))

    @property
    def promised_patches(self) -> set[int]:
        """Latent patches of a pass of each of `promised`."""
        sizes = [(w * h, x * y) for (w, h), (x, y) in self.promised]
        return {(drawn + read) // self.side_multiple**2 for drawn, read in sizes}

    @property
    def promised_sources(self) -> tuple[Size, ...]:
        """Sizes of callers' pictures for which the encoder is warmed."""
        if not self.edits.is_loaded:
            return ()
        return tuple(dict.fromkeys(self.source_size(size, size) for size in self.sizes))

    def resolve(self, parameters: ImageParameters) -> ImageRequest:
        """The request for `parameters`, with defaults filled in and everything checked. Raises
        `InvalidRequest` with field and numbers."""
        check_prompt("prompt", parameters.prompt)
        negative = some_text(parameters.negative_prompt)
        if negative is not None:
            check_prompt("negative_prompt", negative)
        has_picture = parameters.source is not None or parameters.strength is not None
        if has_picture or self.edits.kind == FILL:
            parameters = self.edits.checked(parameters)
        request = ImageRequest(
            prompt=parameters.prompt,
            negative_prompt=negative,
            width=self.default_width if parameters.width is None else parameters.width,
            height=self.default_height if parameters.height is None else parameters.height,
            num_inference_steps=_or(parameters.num_inference_steps, self.default_steps),
            guidance_scale=_or(parameters.guidance_scale, self.default_guidance),
            true_cfg_scale=_or(
                parameters.true_cfg_scale, 1.0 if negative is None else NEGATIVE_PROMPT_SCALE
            ),
            seed=row_seeds(parameters.seed, 1)[0],
            max_sequence_length=_or(parameters.max_sequence_length, self.default_sequence_length),
            output_format=_or(parameters.output_format, "png"),
            output_compression=parameters.output_compression,
            tier=_or(parameters.tier, self.tiers.default),
            partial_images=_or(parameters.partial_images, 0),
            progress=_or(parameters.progress, False),
            loras=_or(parameters.loras, ()),
            source=parameters.source,
            strength=_or(parameters.strength, 1.0),
            metadata=_or(parameters.metadata, DEFAULT),
        )
        self._check_numbers(request)
        self._check_size(request)
        if request.source is not None:
            self.edits.check_sizes(self, request)
        check_file_options(request, has_checker=self.has_checker)
        self._check_tier(request)
        return request

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest value of each number but sides and seeds."""
        return {
            "num_inference_steps": (1, self.max_steps),
            "guidance_scale": (0, MAX_SCALE),
            "true_cfg_scale": (0, MAX_SCALE),
            "max_sequence_length": (1, self.max_sequence_length),
            "output_compression": (0, 100),
        }

    def parameter_schemas(self) -> dict[str, dict[str, Any]]:
        """The V2 parameters as JSON Schema, with defaults and limits."""
        side = {"type": "integer", "minimum": self.min_side, "maximum": self.max_side}
        side["multipleOf"] = self.side_multiple
        defaults: dict[str, float] = {
            "num_inference_steps": self.default_steps,
            "guidance_scale": self.default_guidance,
            "max_sequence_length": self.default_sequence_length,
        }
        found: dict[str, dict[str, Any]] = {
            "width": {**side, "default": self.default_width},
            "height": {**side, "default": self.default_height},
        }
        for name, (low, high) in self.ranges.items():
            kind = "number" if name.endswith("_scale") else "integer"
            found[name] = {"type": kind, "minimum": low, "maximum": high}
            if name in defaults:
                found[name]["default"] = defaults[name]
        if self.edits.is_loaded:
            default = self.edits.default_strength
            found["strength"] = {"type": "number", "minimum": 0, "maximum": 1, "default": default}
        tiers, default_tier = list(self.tiers.loaded), self.tiers.default
        return found | {
            "seed": dict(SEED_SCHEMA),
            "tier": {"type": "string", "enum": tiers, "default": default_tier},
            "loras": {"type": "string", "contentMediaType": "application/json", "default": "[]"},
            **file_schemas(),
        }

    def summary(self) -> dict[str, Any]:
        """Sizes, tiers and limits as JSON values; `sizes` are compiled and warmed."""
        return {
            "sizes": [f"{width}x{height}" for width, height in self.sizes],
            "default_size": f"{self.default_width}x{self.default_height}",
            "other_sizes": "refused" if self.refuses_unpromised else "drawn",
            "min_side": self.min_side,
            "max_side": self.max_side,
            "max_pixels": self.max_pixels,
            "side_multiple": self.side_multiple,
            "tiers": list(self.tiers.loaded),
            "default_tier": self.tiers.default,
            "edits": list(self.edits.abilities),
            "max_steps": self.max_steps,
            "max_sequence_length": self.max_sequence_length,
            "max_prompt_bytes": MAX_PROMPT_BYTES,
        }

    def edit_size(
        self, width: int | None, height: int | None, picture: tuple[int, int]
    ) -> tuple[int, int]:
        """(width, height) of what is drawn for a `picture` of (width, height), where a caller named
        neither, one or both of the sides."""
        return self.edits.drawn_size(self, width, height, picture)

    def source_size(self, drawn: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that a caller's `picture`, and its mask, are resized to."""
        return self.edits.source_size(self, drawn, picture)

    def check_sides(self, width: int, height: int) -> None:
        """Raise `InvalidRequest` for sides that the model or the settings rule out."""
        for name, side in (("width", width), ("height", height)):
            in_range = self.min_side <= side <= self.max_side
            if not in_range or side % self.side_multiple:
                raise InvalidRequest(
                    f"{name} must be a multiple of {self.side_multiple} from {self.min_side} to "
                    f"{self.max_side}, not {side}",
                    param=name,
                )
        if width * height > self.max_pixels:
            raise InvalidRequest(
                f"width x height is {width}x{height} = {width * height} pixels; at most "
                f"{self.max_pixels} are drawn",
                param="width",
            )

    def _check_size(self, request: ImageRequest) -> None:
        self.check_sides(request.width, request.height)
        if self.refuses_unpromised:
            self._check_promise(request)

    def _check_promise(self, request: ImageRequest) -> None:
        """Raise `InvalidRequest` for a shape that is not compiled and warmed."""
        if (request.width, request.height) not in self.sizes:
            promised = ", ".join(f"{w}x{h}" for w, h in self.sizes)
            raise InvalidRequest(
                f"size {request.width}x{request.height} is not served here; "
                f"promised are {promised}",
                param="size",
            )
        if request.max_sequence_length != self.default_sequence_length:
            raise InvalidRequest(
                f"max_sequence_length {request.max_sequence_length} is not served here; "
                f"promised is {self.default_sequence_length}",
                param="max_sequence_length",
            )

    def _check_tier(self, request: ImageRequest) -> None:
        if request.tier not in self.tiers.loaded:
            raise InvalidRequest(
                f"tier {request.tier[:32]!r} is not loaded here; loaded are "
                f"{', '.join(self.tiers.loaded)}",
                param="tier",
            )

    def _check_numbers(self, request: ImageRequest) -> None:
        for name, (low, high) in self.ranges.items():
            value: float | None = getattr(request, name)
            if value is not None:
                check_range(name, value, low, high)
        if request.true_cfg_scale > 1 and request.negative_prompt is None:
            raise InvalidRequest(
                f"true_cfg_scale {request.true_cfg_scale:g} needs a negative_prompt; without one "
                "leave it out or at 1",
                param="true_cfg_scale",
            )


def make_limits(
    config: CheckpointConfig, settings: FluxSettings, device: torch.device = CPU
) -> PictureLimits:
    """A checkpoint's limits on `device`; raises `InvalidSetting` naming the setting."""
    width, height = default = _default_size(config, settings)
    tokens = settings.max_sequence_length or config.default_text_tokens
    if not 1 <= tokens <= config.max_text_tokens:
        raise InvalidSetting(
            f"flux.max_sequence_length must be from 1 to {config.max_text_tokens}, not {tokens}"
        )
    steps = settings.default_steps or config.default_steps
    if not 1 <= steps <= settings.max_steps:
        raise InvalidSetting(f"flux.default_steps is {steps}, flux.max_steps {settings.max_steps}")
    limits = PictureLimits(
        default_width=width,
        default_height=height,
        default_steps=steps,
        default_guidance=config.default_guidance,
        default_sequence_length=tokens,
        max_sequence_length=config.max_text_tokens,
        side_multiple=config.patch_pixels,
        min_side=settings.min_side,
        max_side=settings.max_side,
        max_pixels=settings.max_pixels,
        max_steps=settings.max_steps,
        sizes=tuple(dict.fromkeys(_sizes("flux.sizes", settings.sizes) or [default])),
        refuses_unpromised=settings.unpromised == "refuse",
        tiers=make_tiers(settings, device, is_quantized=config.is_quantized),
        edits=choose_edits(config, settings.edits),
        has_checker=bool(settings.checker),
    )
    _check_sizes(limits)
    return limits


def make_tiers(settings: FluxSettings, device: torch.device, *, is_quantized: bool) -> Tiers:
    """The tiers that a checkpoint serves on `device`; raises `InvalidSetting`."""
    is_cuda = device.type == "cuda"
    return choose_tiers(
        settings, is_quantized=is_quantized, is_cuda=is_cuda, has_fp8=has_fp8_units(device)
    )


def _default_size(config: CheckpointConfig, settings: FluxSettings) -> tuple[int, int]:
    native = (config.sample_size, config.sample_size)
    asked = _sizes("flux.default_size", settings.default_size)
    promised = _sizes("flux.sizes", settings.sizes)
    if asked:
        return asked[0]
    # a default that is always refused would be none
    is_lost = settings.unpromised == "refuse" and promised and native not in promised
    return promised[0] if is_lost else native


def _check_sizes(limits: PictureLimits) -> None:
    for width, height in ((limits.default_width, limits.default_height), *limits.sizes):
        try:
            limits.check_sides(width, height)
        except InvalidRequest as error:
            message = f"size {width}x{height} can't be promised: {error.message}"
            raise InvalidSetting(message) from error
    default = (limits.default_width, limits.default_height)
    if limits.refuses_unpromised and default not in limits.sizes:
        raise InvalidSetting(f"flux.default_size {default} would be refused: not in flux.sizes")


def _sizes(knob: str, text: str) -> Sequence[tuple[int, int]]:
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InvalidSetting(f"{knob} must be WIDTHxHEIGHT, comma-separated, not {part!r}")
        sizes.append((int(width), int(height)))
    return sizes


def some_text(text: str | None) -> str | None:
    """The text, or None for white space alone, which forms send for an empty field."""
    return text if text is not None and text.strip() else None


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
