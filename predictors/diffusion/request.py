"""What may be asked of the FLUX room, and what comes back. Pure values: no wire, no tensor, no
device.

An `Offer` holds what a checkpoint and the settings allow; `Offer.request` is the only way from a
wish to an `ImageRequest`, so that V2 and OpenAI callers get the same defaults and refusals.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from predictors.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

MAX_SEED = 2**53 - 1  # the largest whole number that JSON clients keep exactly
MAX_PROMPT_BYTES = 32 * 1024
MAX_SCALE = 100
OUTPUT_FORMATS = ("png", "jpeg", "webp")
NEGATIVE_PROMPT_SCALE = 4.0  # true_cfg_scale when a negative prompt comes without one
DEFAULT_GUIDANCE = 3.5

LOSSLESS, HIGH, TURBO = "lossless", "high", "turbo"
TIERS = (LOSSLESS, HIGH, TURBO)
"""Ways to draw: as published, with fp8 weights, and with steps that don't call the model."""
BASE, FP8 = "base", "fp8"
"""Forms of the transformer's weights: in the compute dtype, and in float8_e4m3fn."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """Which tiers one checkpoint serves, and with which weights."""

    loaded: tuple[str, ...]
    """Some of `TIERS`, in their order; never none."""
    default: str
    """Of a request that names none."""
    has_base: bool = True
    """False for a checkpoint that is stored in fp8."""

    def form_of(self, tier: str) -> str:
        """`BASE` or `FP8`. Turbo takes the quicker of what is held."""
        if tier == LOSSLESS or not self._has_fp8:
            return BASE
        return FP8

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that must be held."""
        found = {self.form_of(tier) for tier in self.loaded}
        return tuple(form for form in (BASE, FP8) if form in found)

    @property
    def _has_fp8(self) -> bool:
        return HIGH in self.loaded or not self.has_base


@dataclass(frozen=True, slots=True)
class Wish:
    """One row as a caller wrote it; None is what was not said."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    seed: int | None = None
    max_sequence_length: int | None = None
    output_format: str | None = None
    output_compression: int | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture, everything decided: sides in pixels, `max_sequence_length` in T5 tokens."""

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    seed: int
    max_sequence_length: int
    output_format: str = "png"
    output_compression: int | None = None
    tier: str = LOSSLESS
    """One of `TIERS`."""

    @property
    def may_skip(self) -> bool:
        """Whether steps need not all call the model."""
        return self.tier == TURBO

    @property
    def is_guided(self) -> bool:
        """Whether a step takes a second row, for the negative prompt (true CFG)."""
        return self.true_cfg_scale > 1 and self.negative_prompt is not None

    @property
    def num_rows(self) -> int:
        """Rows of a forward pass that this picture takes."""
        return 2 if self.is_guided else 1


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished picture on the host."""

    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    num_prompt_tokens: int
    """T5 tokens of the prompt that were read, padding excluded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be asked of one checkpoint under the settings; sides in pixels."""

    default_width: int
    default_height: int
    default_steps: int
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

    def request(self, wish: Wish) -> ImageRequest:
        """The wish with its defaults; raises `InvalidRequest` naming the field and the numbers."""
        check_prompt("prompt", wish.prompt)
        if wish.negative_prompt is not None:
            check_prompt("negative_prompt", wish.negative_prompt)
        request = ImageRequest(
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            width=self.default_width if wish.width is None else wish.width,
            height=self.default_height if wish.height is None else wish.height,
            num_inference_steps=_or(wish.num_inference_steps, self.default_steps),
            guidance_scale=_or(wish.guidance_scale, DEFAULT_GUIDANCE),
            true_cfg_scale=_cfg_scale(wish),
            seed=secrets.randbelow(MAX_SEED + 1) if wish.seed is None else wish.seed,
            max_sequence_length=_or(wish.max_sequence_length, self.default_sequence_length),
            output_format=wish.output_format or "png",
            output_compression=wish.output_compression,
            tier=_or(wish.tier, self.tiers.default),
        )
        self._check_size(request)
        self._check_numbers(request)
        _check_output(request)
        self._check_tier(request)
        return request

    def check_promise(self, width: int, height: int, num_tokens: int) -> None:
        """Raise `InvalidRequest` for a shape that was not warmed, if such are refused."""
        if not self.refuses_unpromised or self.is_promised(width, height, num_tokens):
            return
        if (width, height) in self.sizes:
            raise InvalidRequest(
                f"max_sequence_length {num_tokens} is not served here; "
                f"promised is {self.default_sequence_length}",
                param="max_sequence_length",
            )
        promised = ", ".join(f"{w}x{h}" for w, h in self.sizes)
        raise InvalidRequest(
            f"size {width}x{height} is not served here; promised are {promised}", param="size"
        )

    def is_promised(self, width: int, height: int, num_tokens: int) -> bool:
        """Whether this shape is compiled and warmed."""
        return (width, height) in self.sizes and num_tokens == self.default_sequence_length

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
        _check_range(
            "max_sequence_length", request.max_sequence_length, 1, self.max_sequence_length
        )
        self.check_promise(request.width, request.height, request.max_sequence_length)

    def _check_tier(self, request: ImageRequest) -> None:
        if request.tier not in self.tiers.loaded:
            raise InvalidRequest(
                f"tier {request.tier[:32]!r} is not loaded here; loaded are "
                f"{', '.join(self.tiers.loaded)}",
                param="tier",
            )

    def _check_numbers(self, request: ImageRequest) -> None:
        _check_range("num_inference_steps", request.num_inference_steps, 1, self.max_steps)
        _check_range("guidance_scale", request.guidance_scale, 0, MAX_SCALE)
        _check_range("true_cfg_scale", request.true_cfg_scale, 0, MAX_SCALE)
        _check_range("seed", request.seed, 0, MAX_SEED)
        if request.true_cfg_scale > 1 and request.negative_prompt is None:
            raise InvalidRequest(
                f"true_cfg_scale {request.true_cfg_scale:g} needs a negative_prompt; without one "
                "leave it out or at 1",
                param="true_cfg_scale",
            )


def row_seeds(seed: int | None, num_rows: int) -> list[int | None]:
    """Row i of a request with `seed` uses seed + i; without one each row draws its own."""
    if seed is None:
        return [None] * num_rows
    _check_range("seed", seed, 0, MAX_SEED)
    if seed + num_rows - 1 > MAX_SEED:
        raise InvalidRequest(
            f"seed {seed} plus {num_rows} rows passes the largest seed {MAX_SEED}", param="seed"
        )
    return [seed + row for row in range(num_rows)]


def check_prompt(name: str, prompt: str) -> None:
    """Raise `TooLarge` for more bytes than are ever read, `InvalidRequest` for half characters."""
    try:
        num_bytes = len(prompt.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not Unicode text", param=name) from error
    if num_bytes > MAX_PROMPT_BYTES:
        raise TooLarge(
            f"{name} has {num_bytes} bytes; at most {MAX_PROMPT_BYTES} are taken", param=name
        )


def _cfg_scale(wish: Wish) -> float:
    if wish.true_cfg_scale is not None:
        return wish.true_cfg_scale
    return 1.0 if wish.negative_prompt is None else NEGATIVE_PROMPT_SCALE


def _check_output(request: ImageRequest) -> None:
    if request.output_format not in OUTPUT_FORMATS:
        raise InvalidRequest(
            f"output_format must be one of {', '.join(OUTPUT_FORMATS)}, "
            f"not {request.output_format[:32]!r}",
            param="output_format",
        )
    if request.output_compression is None:
        return
    _check_range("output_compression", request.output_compression, 0, 100)
    if request.output_format == "png" and request.output_compression != 100:
        raise InvalidRequest(
            f"output_compression {request.output_compression} is for jpeg and webp; png is always "
            "lossless (100)",
            param="output_compression",
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        shown = str(value)[:32]
        raise InvalidRequest(f"{name} must be from {low} to {high}, not {shown}", param=name)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
