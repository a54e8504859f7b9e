"""The edits that a checkpoint can do: their checks, and the sizes of their pictures.

A text-to-image checkpoint starts from a caller's picture with noise on it (image to image), or
draws its masked part again (inpainting). FLUX.1-Fill does only the latter, and FLUX.1-Kontext reads
another picture beside the one it draws. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from predictors.diffusion.request import (
    FILL,
    KONTEXT,
    TEXT,
    ImageParameters,
    ImageRequest,
    check_range,
)
from predictors.errors import InvalidRequest
from predictors.settings import InvalidSetting

Size = tuple[int, int]

PREFERRED = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184),
    (944, 1104), (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752),
    (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""The sizes that FLUX.1-Kontext was trained on, as in diffusers' `PREFERRED_KONTEXT_RESOLUTIONS`,
for a checkpoint whose native side is `PREFERRED_SIDE`."""
PREFERRED_SIDE = 1024
DEFAULT_STRENGTH = 0.6
"""Default `strength` of diffusers' FluxImg2ImgPipeline and FluxInpaintPipeline; that of its
FluxFillPipeline is 1."""
NAMES = {
    TEXT: "a text-to-image checkpoint (FLUX.1-dev, -schnell, -Krea)",
    FILL: "FLUX.1-Fill",
    KONTEXT: "FLUX.1-Kontext",
}
ABILITIES = {
    TEXT: ("generate", "image_to_image", "inpaint"),
    FILL: ("inpaint",),
    KONTEXT: ("generate", "reference"),
}
"""Kind -> what it can do with its encoder loaded."""


class PictureConfig(Protocol):
    """The part of `model.CheckpointConfig` that edits read."""

    @property
    def kind(self) -> str: ...

    @property
    def has_encoder(self) -> bool: ...

    @property
    def sample_size(self) -> int: ...

    @property
    def patch_pixels(self) -> int: ...


class SizeLimits(Protocol):
    """The part of `limits.PictureLimits` that edits read."""

    @property
    def side_multiple(self) -> int: ...

    @property
    def min_side(self) -> int: ...

    @property
    def max_side(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...

    @property
    def sizes(self) -> tuple[Size, ...]: ...

    @property
    def refuses_unpromised(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Edits:
    """The edits of one checkpoint. Immutable."""

    kind: str = TEXT
    is_loaded: bool = False
    """The encoder of the autoencoder is held."""
    preferred: tuple[Size, ...] = ()
    """Sizes at which FLUX.1-Kontext reads a picture."""

    @property
    def abilities(self) -> tuple[str, ...]:
        """Some of `generate`, `image_to_image`, `inpaint`, `reference`."""
        return ABILITIES[self.kind] if self.is_loaded else ("generate",)

    @property
    def default_strength(self) -> float:
        """Strength of a request that gives none."""
        return DEFAULT_STRENGTH if self.kind == TEXT else 1.0

    # -- checks ----------------------------------------------------------------------------------
    def check_possible(self, *, has_mask: bool) -> None:
        """Raise `InvalidRequest` if the checkpoint can't take a picture, with or without a mask.
        Edges call it before they decode one."""
        if not self.is_loaded:
            raise InvalidRequest(
                "this model draws from text alone: the encoder of its autoencoder is not loaded "
                "(flux.edits is off, or the checkpoint lacks it)",
                param="image",
            )
        if self.kind == FILL and not has_mask:
            raise InvalidRequest(
                "this model is FLUX.1-Fill and draws into the masked part of a picture: it needs a "
                f"mask. Without one {NAMES[TEXT]} or {NAMES[KONTEXT]} can edit",
                param="mask",
            )
        if self.kind == KONTEXT and has_mask:
            raise InvalidRequest(
                "this model is FLUX.1-Kontext and reads a picture without a mask; "
                f"{NAMES[FILL]} or {NAMES[TEXT]} take one",
                param="mask",
            )

    def checked(self, asked: ImageParameters) -> ImageParameters:
        """`asked` with strength and the picture's sides filled in; raises `InvalidRequest` for an
        edit that the checkpoint can't do."""
        source = asked.source
        if source is None:
            raise self._no_picture()
        self.check_possible(has_mask=source.mask is not None)
        strength = asked.strength
        if strength is None:
            strength = self.default_strength
        check_range("strength", strength, 0, 1)
        if self.kind == KONTEXT and strength != 1:
            raise InvalidRequest(
                f"this model is FLUX.1-Kontext and takes no strength ({strength:g}): it reads the "
                f"whole picture and draws another; {NAMES[TEXT]} takes one",
                param="strength",
            )
        height, width = source.pixels.shape[:2]
        return replace(
            asked,
            strength=strength,
            width=width if asked.width is None else asked.width,
            height=height if asked.height is None else asked.height,
        )

    def _no_picture(self) -> InvalidRequest:
        if self.kind == FILL:
            return InvalidRequest(
                "this model is FLUX.1-Fill: it draws into a picture and needs an image and a mask; "
                f"{NAMES[TEXT]} or {NAMES[KONTEXT]} draw from text alone",
                param="image",
            )
        return InvalidRequest("strength is for requests with an image", param="strength")

    def check_sizes(self, limits: SizeLimits, request: ImageRequest) -> None:
        """Raise `InvalidRequest` for a picture that is not at the size at which it is read."""
        source = request.source
        assert source is not None
        height, width = source.pixels.shape[:2]
        wanted = self.source_size(limits, (request.width, request.height), (width, height))
        mask = (height, width) if source.mask is None else source.mask.shape
        if (width, height) != wanted or mask != (height, width):
            raise InvalidRequest(
                f"the image is {width}x{height} and the mask {mask[1]}x{mask[0]}; they are read at "
                f"{wanted[0]}x{wanted[1]}",
                param="image",
            )

    # -- sizes -----------------------------------------------------------------------------------
    def drawn_size(
        self, limits: SizeLimits, width: int | None, height: int | None, picture: Size
    ) -> Size:
        """See `PictureLimits.edit_size`.

        Unnamed sides are the picture's, in whole patches, made smaller or larger where the limits
        ask for that; for FLUX.1-Kontext the preferred size of the nearest aspect ratio. If other
        sizes are refused it is the promised one of the nearest aspect ratio.
        """
        if width is not None and height is not None:
            return width, height
        if limits.refuses_unpromised:
            own = nearest(picture, limits.sizes)
        elif self.kind == KONTEXT:
            own = self._reference_of_picture(limits, picture)
        else:
            own = fitted(limits, picture)
        return own[0] if width is None else width, own[1] if height is None else height

    def source_size(self, limits: SizeLimits, drawn: Size, picture: Size) -> Size:
        """See `PictureLimits.source_size`: what is drawn and what is read have one size, but for
        FLUX.1-Kontext."""
        if self.kind != KONTEXT:
            return drawn
        if limits.refuses_unpromised:
            return self.reference_of(limits, *drawn)
        return self._reference_of_picture(limits, picture)

    def reference_of(self, limits: SizeLimits, width: int, height: int) -> Size:
        """The size of the picture beside one of a promised size, which is warmed: the preferred one
        of the nearest aspect ratio. (0, 0) if none is read."""
        if self.kind != KONTEXT or not self.is_loaded:
            return 0, 0
        return self._reference_of_picture(limits, (width, height))

    def _reference_of_picture(self, limits: SizeLimits, picture: Size) -> Size:
        allowed = [size for size in self.preferred if is_allowed(limits, size)]
        if not allowed:
            return fitted(limits, picture)
        multiple = limits.side_multiple  # diffusers compares the ratio of whole patches
        width, height = (max(side // multiple, 1) for side in picture)
        return nearest((width, height), allowed)


NO_EDITS = Edits()


def choose_edits(config: PictureConfig, edits: str) -> Edits:
    """The edits of a checkpoint under the setting `flux.edits`; raises `InvalidSetting`."""
    preferred: tuple[Size, ...] = ()
    if config.kind == KONTEXT:
        preferred = preferred_sizes(config.sample_size, config.patch_pixels)
    is_loaded = loads_encoder(config.kind, edits, has_encoder=config.has_encoder)
    return Edits(config.kind, is_loaded, preferred)


def loads_encoder(kind: str, edits: str, *, has_encoder: bool) -> bool:
    """True if the autoencoder's encoder is loaded; `InvalidSetting` if it must be and can't."""
    if edits == "on" and not has_encoder:
        raise InvalidSetting("flux.edits is on, but the checkpoint's vae stores no encoder")
    is_loaded = edits != "off" and has_encoder
    if kind == FILL and not is_loaded:
        reason = "its vae stores no encoder" if edits != "off" else "flux.edits is off"
        raise InvalidSetting(f"the checkpoint is FLUX.1-Fill, which only edits, but {reason}")
    return is_loaded


def preferred_sizes(native: int, multiple: int) -> tuple[Size, ...]:
    """`PREFERRED` for a checkpoint of another native side, in multiples of `multiple`."""
    return tuple((_scaled(w, native, multiple), _scaled(h, native, multiple)) for w, h in PREFERRED)


def _scaled(side: int, native: int, multiple: int) -> int:
    return max(1, round(side * native / PREFERRED_SIDE / multiple)) * multiple


def nearest(picture: Size, sizes: Iterable[Size]) -> Size:
    """The one of `sizes` whose ratio of width to height is nearest to the picture's, as diffusers
    chooses; of several the one whose area is nearest."""
    ratio, area = picture[0] / picture[1], picture[0] * picture[1]
    return min(sizes, key=lambda s: (abs(ratio - s[0] / s[1]), abs(s[0] * s[1] - area), s))


def is_allowed(limits: SizeLimits, size: Size) -> bool:
    in_range = all(limits.min_side <= side <= limits.max_side for side in size)
    return in_range and size[0] * size[1] <= limits.max_pixels


def fitted(limits: SizeLimits, picture: Size) -> Size:
    """The picture's size in whole patches, no larger than the limits allow with its aspect ratio
    kept, and no side smaller than they allow."""
    width, height = picture
    scale = min(
        1.0,
        limits.max_side / max(picture),
        math.sqrt(limits.max_pixels / (width * height)),
    )
    scale = max(scale, min(limits.min_side / min(picture), limits.max_side / max(picture)))
    multiple = limits.side_multiple
    least = -(-limits.min_side // multiple) * multiple
    width, height = (max(int(side * scale) // multiple * multiple, least) for side in picture)
    if width * height > limits.max_pixels:  # a narrow one: its short side is the smallest
        longest = limits.max_pixels // least // multiple * multiple
        width, height = min(width, longest), min(height, longest)
    return width, height
