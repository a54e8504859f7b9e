"""Pictures as PNG, JPEG or WebP files, with a mark of their origin.

A mark is the same for every picture of a model, so that equal requests have equal files; full
metadata, which a request asks for, adds its id and parameters. A signed manifest (C2PA) goes over
the finished file. The decoded pixels are those of a file without a mark.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from predictors import __version__
from predictors.diffusion.request import FULL, ImageRequest
from predictors.protocol.content_credentials import FollowedSigner, make_signer
from predictors.protocol.png import write_png
from predictors.protocol.xmp import COMPOSITE, TRAINED, Origin, jpeg_with_xmp, xmp_packet
from predictors.settings import FluxSettings

TOOL = f"vision-predictors {__version__}"
NO_MARK = "none"
DEFAULT_QUALITY = {"jpeg": 95, "webp": 90}


@dataclass(frozen=True, slots=True)
class PictureWriter:
    """The files of one model's pictures. Immutable; any thread."""

    model: str
    """Name under which the model is served."""
    png_level: int
    """As `protocol.png.write_png`, 0 to 9."""
    provenance: str = "xmp"
    """`xmp`, `c2pa` (a signed manifest beside XMP) or `none`: as responses say it."""
    signer: FollowedSigner | None = None
    """Present where `provenance` is `c2pa`."""

    @classmethod
    def of(cls, model: str, settings: FluxSettings) -> PictureWriter:
        """Raises `InvalidSetting` for a certificate or key that can't sign."""
        return cls(model, settings.png_level, settings.provenance, make_signer(settings))

    def write(
        self, pixels: NDArray[np.uint8], request: ImageRequest, request_id: str = ""
    ) -> bytes:
        """The file of uint8 pixels (h, w, 3) in the request's format. Pool thread.

        Raises `SigningFailed` where a manifest is due and can't be signed.
        """
        kind, quality = request.output_format, request.output_compression
        if self.provenance == NO_MARK:
            return self._encode(pixels, kind, quality, b"")
        origin = self._origin(request, request_id)
        packet = xmp_packet(origin)
        file = self._encode(pixels, kind, quality, packet)
        if kind == "jpeg":
            file = jpeg_with_xmp(file, origin, packet)
        if self.signer is not None:
            file = self.signer.sign(file, f"image/{kind}", origin)
        return file

    def _encode(
        self, pixels: NDArray[np.uint8], kind: str, quality: int | None, packet: bytes
    ) -> bytes:
        # JPEG's packet is put in afterwards: Pillow has no place for a long one
        if kind == "png":
            return write_png(pixels, self.png_level, packet)
        file = io.BytesIO()
        quality = DEFAULT_QUALITY[kind] if quality is None else quality
        # WebP's fastest method: a third of the time of Pillow's default at equal size and distance
        options = {"method": 0, "xmp": packet} if kind == "webp" else {}
        Image.fromarray(pixels).save(file, kind.upper(), quality=quality, **options)
        return file.getvalue()

    def _origin(self, request: ImageRequest, request_id: str) -> Origin:
        source = request.source
        # without a mask the model draws all of the picture, whatever it was shown
        kind = TRAINED if source is None or source.mask is None else COMPOSITE
        if request.metadata != FULL:
            return Origin(kind, TOOL, self.model)
        return Origin(kind, TOOL, self.model, request.prompt, _parameters(request, request_id))


def _parameters(request: ImageRequest, request_id: str) -> dict[str, str]:
    """The request's id and parameters by the API's names, as texts that the API takes again."""
    loras = [{"name": each.name, "scale": each.scale} for each in request.loras]
    found: dict[str, object] = {
        "request_id": request_id or None,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "true_cfg_scale": request.true_cfg_scale,
        "max_sequence_length": request.max_sequence_length,
        "tier": request.tier,
        "strength": None if request.source is None else request.strength,
        "loras": json.dumps(loras) if loras else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
