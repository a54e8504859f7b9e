"""The body of `POST /v1/images/edits`, as a form or as JSON: the fields of
`/v1/images/generations` with pictures beside them.

Pictures are bytes here, not decoded. Worker processes import this module, so nothing here loads
gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.http.multipart import is_form, read_form
from predictors.protocol.images.urls import read_data_url
from predictors.protocol.openai import images_body
from predictors.protocol.openai.check_fields import CHECK_FIELDS
from predictors.protocol.openai.clients import merged
from predictors.protocol.openai.fields import (
    DROP,
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    number,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    said,
    take_named,
    wrong,
)
from predictors.protocol.openai.forms import body_of_form
from predictors.protocol.openai.image_clients import EDIT_CLIENTS
from predictors.protocol.openai.image_events import EDIT, check_stream
from predictors.protocol.openai.images_body import ImagesBody, with_sides

MAX_PICTURES = 16  # as OpenAI; a model's own limit is lower
FILES = ("image", "mask")
"""Fields that are files in a form."""
_DATA_URL = {"type": "string"}


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class SentPicture:
    """A picture file as the caller sent it."""

    file: bytes = field(repr=False)
    where: str
    """The field that held it, as errors name it."""


@dataclass(frozen=True)
class EditsBody(ImagesBody):
    """A checked body: `images` has one picture at least."""

    events: ClassVar[str] = EDIT

    images: tuple[SentPicture, ...] = ()
    mask: SentPicture | None = None
    strength: float | None = None


def decode_edits_body(raw: bytes, content_type: str) -> DecodedBody[EditsBody]:
    """Raises `InvalidRequest` for a form or a JSON text that is malformed."""
    if not is_form(content_type):
        return check_body(parse_json(raw), read_edits_body)
    parts = read_form(raw, content_type)
    texts = ("model", "prompt")
    body = body_of_form(parts, FIELDS, files=FILES, may_be_empty=texts)
    return check_body(body, read_edits_body)


def read_edits_body(body: object) -> EditsBody:
    """Raises `InvalidRequest` naming the field."""
    read = read_fields(body, FIELDS)
    one, several = read.pop("image", ()), read.pop("images", ())
    if one and several:
        raise InvalidRequest("image and images are the same; send one of them", param="images")
    require(read, "model", "prompt")
    pictures = one or several
    if not pictures:
        raise InvalidRequest("image is required", param="image")
    check_stream(read)
    asks_check = take_named(read, CHECK_FIELDS)
    return EditsBody(images=pictures, asks_check=asks_check, **with_sides(read))


# -- pictures --------------------------------------------------------------------------------------
def _picture(name: str, value: Any) -> SentPicture:
    """A file of a form, or a data URL, which a form may have as well."""
    if isinstance(value, bytes):
        if value[:5].lower() != b"data:":
            return SentPicture(value, name)
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise wrong(name, "a data URL such as 'data:image/png;base64,...'", value)
    return SentPicture(read_data_url(value, param=name), name)


_REFERENCE = {
    "image_url": DescribedRule(_picture, _DATA_URL),
    "file_id": only_values(why="this server keeps no files"),
}
_REFERENCE_SCHEMA = object_schema(_REFERENCE, "image_url")


def _reference(name: str, value: Any) -> SentPicture:
    """OpenAI's `{"image_url": ...}`."""
    read = read_fields(value, _REFERENCE, where=name)
    require(read, "image_url", where=name)
    found: SentPicture = read["image_url"]
    return found


def _at_most(name: str, pictures: list[Any]) -> None:
    if not pictures:
        raise InvalidRequest(f"{name} is an empty list; it takes a picture", param=name)
    if len(pictures) > MAX_PICTURES:
        message = f"{name} has {len(pictures)} pictures; at most {MAX_PICTURES} are read"
        raise InvalidRequest(message, param=name)


_FILE = "A data URL in JSON, a file in a form"
_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_PICTURES, "items": _DATA_URL}


@described({"anyOf": [_DATA_URL, _LIST], "description": f"{_FILE}; or a list of them"})
def _image(name: str, value: Any) -> tuple[SentPicture, ...]:
    if not isinstance(value, list):
        return (_picture(name, value),)
    _at_most(name, value)
    return tuple(_picture(f"{name}[{i}]", each) for i, each in enumerate(value))


@described(
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_PICTURES,
        "items": _REFERENCE_SCHEMA,
        "description": 'In JSON alone: `[{"image_url": DATA_URL}]`, the same as `image`',
    }
)
def _images(name: str, value: Any) -> tuple[SentPicture, ...]:
    if not isinstance(value, list):
        raise wrong(name, "a list of objects with image_url", value)
    _at_most(name, value)
    return tuple(_reference(f"{name}[{i}]", each) for i, each in enumerate(value))


@described({"anyOf": [_DATA_URL, _REFERENCE_SCHEMA], "description": _FILE})
def _mask(name: str, value: Any) -> SentPicture:
    return _reference(name, value) if isinstance(value, dict) else _picture(name, value)


_FIDELITY = one_of("low", "high")


@described(
    {
        "type": "string",
        "enum": ["low", "high"],
        "description": "Ignored: `strength` sets how much of the picture stays.",
    }
)
def _input_fidelity(name: str, value: Any) -> object:
    _FIDELITY.check(name, value)
    return DROP


OWN_FIELDS: Mapping[str, DescribedRule] = {
    **images_body.OWN_FIELDS,
    "image": _image,
    "images": _images,
    "mask": _mask,
    "strength": said(
        "How much of the picture is drawn anew; 0 keeps it, 1 keeps nothing.", number(0, 1)
    ),
    "input_fidelity": _input_fidelity,
    "markup": only_values(why="a mask says what is to be redrawn"),
}
"""OpenAI's and our own fields."""
FIELDS: Mapping[str, DescribedRule] = {
    **merged(EDIT_CLIENTS),
    **images_body.SERVICES,
    **OWN_FIELDS,
}
