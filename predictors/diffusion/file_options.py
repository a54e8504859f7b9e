"""The options of a request about the files that it gets: their schemas and their checks."""

from __future__ import annotations

from typing import Any

from predictors.diffusion.request import DEFAULT, METADATA, ImageRequest, check_range
from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import MAX_PARTIAL_IMAGES

OUTPUT_FORMATS = ("png", "jpeg", "webp")


def file_schemas() -> dict[str, dict[str, Any]]:
    """The V2 parameters as JSON Schema, but for numbers with a range."""
    return {
        "output_format": {"type": "string", "enum": list(OUTPUT_FORMATS), "default": "png"},
        "metadata": {"type": "string", "enum": list(METADATA), "default": DEFAULT},
    }


def check_file_options(request: ImageRequest, *, has_checker: bool) -> None:
    """Raise `InvalidRequest` naming the field. With a checker no previews are sent: it is made for
    finished pictures, and might pass a blurred one that it would withhold."""
    check_range("partial_images", request.partial_images, 0, MAX_PARTIAL_IMAGES)
    if has_checker and request.partial_images:
        raise InvalidRequest(
            f"partial_images {request.partial_images} is not served here, since pictures are "
            "checked before they are sent and previews can't be; leave it out or at 0",
            param="partial_images",
        )
    for name, choices in (("output_format", OUTPUT_FORMATS), ("metadata", METADATA)):
        value: str = getattr(request, name)
        if value not in choices:
            raise InvalidRequest(
                f"{name} must be one of {', '.join(choices)}, not {value[:32]!r}", param=name
            )
    if request.output_format == "png" and request.output_compression not in (None, 100):
        raise InvalidRequest(
            f"output_compression {request.output_compression} is for jpeg and webp; png is always "
            "lossless (100)",
            param="output_compression",
        )
