"""The fields of a chat body that say how large its pictures are read: `min_pixels` and `max_pixels`
of the body, of vLLM's `mm_processor_kwargs` and of one part, and `detail`.

Numbers are checked for their type here; a model's codec holds them against the server's limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    object_schema,
    one_of,
    read_fields,
    said,
    whole,
)

MAX_PIXELS = 2**31 - 1  # largest number that is read; no server reads so many
DETAILS = ("auto", "low", "high", "original")


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class RequestedPixels:
    """The bounds that a caller asks for, of all pictures or of one; None asks for nothing."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    detail: str | None = None


AS_SERVED = RequestedPixels()
PIXEL_FIELDS: dict[str, DescribedRule] = {
    "min_pixels": said("Smaller pictures are enlarged to so many pixels.", whole(1, MAX_PIXELS)),
    "max_pixels": said("Larger pictures are reduced to so many pixels.", whole(1, MAX_PIXELS)),
}
DETAIL = one_of(*DETAILS)
_EDGES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""transformers' names: areas, although they are called edges."""


_SIZE_FIELDS = {edge: PIXEL_FIELDS[field] for edge, field in _EDGES.items()}


@described(object_schema(_SIZE_FIELDS))
def _size(name: str, value: Any) -> dict[str, int]:
    read = read_fields(value, _SIZE_FIELDS, where=name)
    return {_EDGES[edge]: pixels for edge, pixels in read.items()}


PROCESSOR_PIXELS = {**PIXEL_FIELDS, "size": _size}
"""Fields of vLLM's `mm_processor_kwargs`."""


def read_processor_pixels(read: dict[str, Any], name: str) -> RequestedPixels:
    """Takes the pixels out of the checked fields of `mm_processor_kwargs`, called `name`."""
    size = read.pop("size", {})
    own = {field: read.pop(field) for field in PIXEL_FIELDS if field in read}
    return _agreed(size, own, f"{name}.size", name)


def read_pixels(read: dict[str, Any], inner: RequestedPixels) -> RequestedPixels:
    """Takes the pixels out of a body's checked fields. `inner` are those of
    `mm_processor_kwargs`."""
    own = {field: read.pop(field) for field in PIXEL_FIELDS if field in read}
    given = {field: value for field, value in vars(inner).items() if value is not None}
    return _agreed(own, given, "the body", "mm_processor_kwargs")


def _agreed(
    one: Mapping[str, int], other: Mapping[str, int], where: str, elsewhere: str
) -> RequestedPixels:
    for field in one.keys() & other.keys():
        if one[field] != other[field]:
            message = (
                f"{field} is {one[field]} in {where} and {other[field]} in {elsewhere}; "
                "give it once"
            )
            raise InvalidRequest(message, param=elsewhere)
    agreed = {**one, **other}
    return RequestedPixels(agreed.get("min_pixels"), agreed.get("max_pixels"))
