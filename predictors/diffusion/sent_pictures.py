"""Callers' pictures and masks: from files to pixels at the size at which a checkpoint reads them.

Worker processes decode, threads resize. The filter is Lanczos on whole RGB pixels, as in diffusers'
`VaeImageProcessor`, so a picture enters the encoder as it would there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.request import ImageParameters, SourcePicture
from predictors.errors import InvalidRequest
from predictors.protocol.images.decode import Pixels, decode_mask, decode_pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.tasks import DECODE_MASK, DECODE_PICTURE
from predictors.settings import ImageLimits
from predictors.workers.pool import LARGE_TASK_BYTES, Workers

OffLoop = Callable[..., Awaitable[Any]]
"""`BasePredictor.off_loop`."""


@dataclass(frozen=True, slots=True, eq=False)
class SentSource:
    """A picture as the caller sent it, not decoded, with the fields that errors name."""

    image: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    image_field: str = "image"
    mask_field: str = "mask"
    row: int | None = None
    """The row of a V2 request, None if several share the picture."""


@dataclass(frozen=True, slots=True)
class SentRow:
    """One row as it was sent: its picture is not decoded yet."""

    parameters: ImageParameters
    sent: SentSource | None = None


@dataclass(frozen=True, slots=True)
class DecodedSource:
    image: Pixels
    mask: Pixels | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the picture that was sent."""
        return self.image.width, self.image.height


def with_blank_source(limits: PictureLimits, row: SentRow) -> ImageParameters:
    """The row's parameters with a picture of the default size in place of its own, so that
    everything but the size is checked before a picture is decoded."""
    parameters, sent = row.parameters, row.sent
    if sent is None:
        return parameters
    limits.edits.check_possible(has_mask=sent.mask is not None)
    picture = limits.default_width, limits.default_height
    drawn = limits.edit_size(parameters.width, parameters.height, picture)
    limits.check_sides(*drawn)
    width, height = limits.source_size(drawn, picture)
    pixels = np.broadcast_to(np.uint8(0), (height, width, 3))
    mask = None if sent.mask is None else pixels[..., 0]
    return replace(parameters, width=drawn[0], height=drawn[1], source=SourcePicture(pixels, mask))


class SourceReader:
    """Reads the pictures of one model's requests. Event loop."""

    def __init__(
        self,
        limits: PictureLimits,
        images: ImageLimits,
        workers: Workers | None,
        off_loop: OffLoop,
    ) -> None:
        """Without `workers`, threads decode."""
        self._limits = limits
        self._images = images
        self._workers = workers
        self._off_loop = off_loop

    async def read(
        self, rows: Sequence[SentRow]
    ) -> tuple[list[ImageParameters], list[tuple[int, int]]]:
        """The parameters of all rows with their pictures and sizes, and the sizes of the pictures
        as they were sent. A picture that several rows share is decoded once."""
        found: list[ImageParameters] = []
        sizes: list[tuple[int, int]] = []
        before: tuple[SentSource, ImageParameters] | None = None
        for row in rows:
            if row.sent is None:
                found.append(row.parameters)
            elif before is not None and before[0] is row.sent:
                filled = before[1]
                found.append(
                    replace(
                        row.parameters,
                        source=filled.source,
                        width=filled.width,
                        height=filled.height,
                    )
                )
            else:
                filled, size = await self._read(row.parameters, row.sent)
                before = row.sent, filled
                found.append(filled)
                sizes.append(size)
        return found, sizes

    async def _read(
        self, parameters: ImageParameters, sent: SentSource
    ) -> tuple[ImageParameters, tuple[int, int]]:
        masks = () if sent.mask is None else (sent.mask,)
        most = self._images.max_pixels
        num_bytes = sum(decoding_bytes(file, most) for file in (sent.image, *masks))
        async with AsyncExitStack() as stack:
            if self._workers is not None:
                try:  # for both at once: a request that holds a part never waits for the rest
                    await stack.enter_async_context(self._workers.memory(num_bytes))
                except InvalidRequest as error:
                    message = f"{sent.image_field}: {error.message}"
                    raise type(error)(message, param=sent.image_field, row=sent.row) from error
            decoded = await self._decode(sent)
            is_large = num_bytes > LARGE_TASK_BYTES
            filled = await self._off_loop(self._resize, parameters, decoded, is_large=is_large)
            return filled, decoded.size

    async def _decode(self, sent: SentSource) -> DecodedSource:
        image = await self._pixels(sent.image, sent.image_field, sent.row, is_mask=False)
        if sent.mask is None:
            return DecodedSource(image, None)
        mask = await self._pixels(sent.mask, sent.mask_field, sent.row, is_mask=True)
        if (mask.width, mask.height) != (image.width, image.height):
            raise InvalidRequest(
                f"{sent.mask_field} is {mask.width}x{mask.height} pixels and {sent.image_field} "
                f"{image.width}x{image.height}; both must have one size",
                param=sent.mask_field,
                row=sent.row,
            )
        return DecodedSource(image, mask)

    async def _pixels(self, raw: bytes, name: str, row: int | None, *, is_mask: bool) -> Pixels:
        found: Pixels
        if self._workers is None:
            decode = decode_mask if is_mask else decode_pixels
            found = await self._off_loop(
                lambda: decode(raw, self._images, param=name, row=row), is_large=True
            )
            return found
        task = DECODE_MASK if is_mask else DECODE_PICTURE
        memory_bytes = decoding_bytes(raw, self._images.max_pixels)
        found = await self._workers.run_within(
            task, raw, self._images, name, row, memory_bytes=memory_bytes
        )
        return found

    def _resize(self, parameters: ImageParameters, decoded: DecodedSource) -> ImageParameters:
        drawn = self._limits.edit_size(parameters.width, parameters.height, decoded.size)
        self._limits.check_sides(*drawn)
        size = self._limits.source_size(drawn, decoded.size)
        mask = None if decoded.mask is None else lanczos_resized(decoded.mask, size)
        source = SourcePicture(lanczos_resized(decoded.image, size, 3), mask)
        return replace(parameters, width=drawn[0], height=drawn[1], source=source)


def lanczos_resized(pixels: Pixels, size: tuple[int, int], *channels: int) -> NDArray[np.uint8]:
    """A copy at `size`, (width, height), as uint8 (height, width, *channels). Aspect ratios are not
    kept."""
    shape = (pixels.height, pixels.width, *channels)
    found = np.frombuffer(pixels.memory.map(), np.uint8).reshape(shape)
    if (pixels.width, pixels.height) == size:
        return found.copy()
    return np.array(Image.fromarray(found).resize(size, Image.Resampling.LANCZOS))
