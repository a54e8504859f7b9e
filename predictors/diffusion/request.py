"""The values of a picture request, from what a caller wrote to the finished picture.

`ImageParameters` holds one row as both wire formats give it, `ImageRequest` the same with defaults
filled in and checked; `limits.PictureLimits.resolve` is the only way from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from predictors.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PROMPT_BYTES = 32 * 1024

LOSSLESS, HIGH, TURBO = "lossless", "high", "turbo"
TIERS = (LOSSLESS, HIGH, TURBO)
"""Ways to draw: as published, with fp8 weights, and with steps that do not call the model."""
BASE, FP8 = "base", "fp8"
"""Forms of the transformer's weights: in the compute dtype, and in float8_e4m3fn."""
TEXT, FILL, KONTEXT = "text", "fill", "kontext"
"""Kinds of checkpoints: text to image (FLUX.1-dev, -schnell, -Krea), FLUX.1-Fill, which draws into
the masked part of a picture, and FLUX.1-Kontext, which reads a picture beside the prompt."""
DEFAULT, FULL = "default", "full"
METADATA = (DEFAULT, FULL)
"""Contents of a file's mark of origin: `DEFAULT` says that a model made it, `FULL` adds the id and
the parameters of the request."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers that one checkpoint serves, and the forms of its weights that they take."""

    loaded: tuple[str, ...]
    """Some of `TIERS`, in their order, at least one."""
    default: str
    """The tier of a request that names none."""
    has_base: bool = True
    """False for a checkpoint that is stored in fp8."""

    def form_of(self, tier: str) -> str:
        """`BASE` or `FP8`. Turbo takes the faster of those that are held."""
        if tier == LOSSLESS or not self._has_fp8:
            return BASE
        return FP8

    @property
    def forms(self) -> tuple[str, ...]:
        found = {self.form_of(tier) for tier in self.loaded}
        return tuple(form for form in (BASE, FP8) if form in found)

    @property
    def _has_fp8(self) -> bool:
        return HIGH in self.loaded or not self.has_base


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SourcePicture:
    """A caller's picture, at the size of `PictureLimits.source_size`."""

    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    mask: NDArray[np.uint8] | None = None
    """(height, width): 255 is drawn again and 0 kept, by the nearer of the two; None without."""


@dataclass(frozen=True, slots=True)
class LoraScale:
    """An adapter of a request, and the factor of its change."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ImageParameters:
    """One row as a caller wrote it; None where nothing was given."""

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
    partial_images: int | None = None
    progress: bool | None = None
    loras: tuple[LoraScale, ...] | None = None
    source: SourcePicture | None = None
    strength: float | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture, validated: sides in pixels, `max_sequence_length` in text tokens."""

    prompt: str
    negative_prompt: str | None
    """None for white space alone, too."""
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
    loras: tuple[LoraScale, ...] = ()
    """Adapters in the caller's order, each known and named once."""
    source: SourcePicture | None = None
    strength: float = 1.0
    """0 to 1: the part of the schedule that is run, from the picture with that much noise."""
    metadata: str = DEFAULT
    """One of `METADATA`."""
    partial_images: int = 0
    """Previews that its caller gets before the picture, at most."""
    progress: bool = False
    """True if its caller is told of every step."""

    @property
    def is_watched(self) -> bool:
        """True if its caller gets previews or progress before the picture."""
        return self.progress or self.partial_images > 0

    @property
    def may_skip(self) -> bool:
        """True if some steps may be taken without calling the model."""
        return self.tier == TURBO

    @property
    def is_guided(self) -> bool:
        """True if a step takes a second row, for the negative prompt (true CFG)."""
        return self.true_cfg_scale > 1 and self.negative_prompt is not None

    @property
    def num_rows(self) -> int:
        return 2 if self.is_guided else 1


@dataclass(frozen=True, slots=True)
class PartialPicture:
    """A preview of a picture that is still being denoised, on the host."""

    index: int
    """0 for the first of a picture."""
    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3) of the picture, or smaller by a whole factor."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """Progress of a picture: a step was launched."""

    step: int
    """From 1 to `steps`."""
    steps: int
    """Number of steps that call the model."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished picture on the host."""

    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    num_prompt_tokens: int
    """Text tokens of the prompt that were read, padding excluded."""
    num_unread_tokens: int = 0
    """Text tokens of the prompt, or of the negative prompt if those are more, that were beyond
    `max_sequence_length` and not read."""


PictureChunk = PartialPicture | StepTaken | ImageResult
"""One result of a job: `ImageResult` is the last, the others come before it for a request that
`is_watched`."""


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


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `InvalidRequest` for a number out of range."""
    if not low <= value <= high:
        shown = str(value)[:32]
        raise InvalidRequest(f"{name} must be from {low} to {high}, not {shown}", param=name)
