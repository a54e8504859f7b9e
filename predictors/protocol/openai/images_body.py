"""The body of `POST /v1/images/generations`, checked field by field.

`read_images_body` checks names, types and ranges that hold for every text-to-image model. Limits of
a checkpoint (multiples of 16, largest side, steps) are checked by its codec. Worker processes
import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.check_fields import CHECK_FIELDS
from predictors.protocol.openai.clients import merged
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
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
    seed_or_drawn,
    take_named,
    text,
    whole,
    wrong,
)
from predictors.protocol.openai.image_clients import IMAGE_CLIENTS
from predictors.protocol.openai.image_events import GENERATION, STREAM_FIELDS, check_stream
from predictors.protocol.openai.lora_fields import NamedScales, loras

MAX_N = 16  # OpenAI's is 10
MAX_PROMPT = 2**21  # characters that are read; the codec's limit is lower
MAX_SIDE = 65_536  # largest number that is read; the codec's limit is lower
B64_JSON, URL = "b64_json", "url"
QUALITIES = ("auto", "low", "medium", "high", "standard", "hd")
"""OpenAI's. They set no tier: a caller who asks for high quality must not get less exactness."""
NAMED_SIZES: Mapping[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""fal's names of sizes, as width and height."""
_EDITS = "pictures are edited by POST /v1/images/edits"
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class ImagesBody:
    """A checked body. None means that the field is absent or null; sides are in pixels."""

    events: ClassVar[str] = GENERATION
    """Prefix of the names of a stream's events."""

    model: str
    prompt: str
    negative_prompt: str | None = None
    n: int = 1
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    max_sequence_length: int | None = None
    tier: str | None = None
    loras: NamedScales | None = None
    metadata: str | None = None
    """Content of the file's mark of origin: `default` or `full`."""
    output_format: str | None = None
    output_compression: int | None = None
    response_format: str = B64_JSON
    """How pictures come back: `B64_JSON` or `URL`."""
    stream: bool = False
    partial_images: int = 0
    """Previews to send before the picture; only with `stream`."""
    progress: bool = False
    """An event per step; only with `stream`."""
    asks_check: str = field(default="", compare=False)
    """The name of the field that asks for a check of the pictures. A model without one refuses it,
    and with one it changes nothing."""
    spelt: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The caller's field for each one that came under another name: `width` from `size`."""


def decode_images_body(raw: bytes) -> DecodedBody[ImagesBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_images_body)


def read_images_body(body: object) -> ImagesBody:
    """The body, with `size` as `width` and `height`. Raises `InvalidRequest` naming the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "prompt")
    check_stream(read)
    asks_check = take_named(read, CHECK_FIELDS)
    return ImagesBody(asks_check=asks_check, **with_sides(read))


def with_sides(read: dict[str, Any]) -> dict[str, Any]:
    """Checked fields with `width` and `height` in place of `size`, our own names in place of other
    services', and `spelt`. Raises `InvalidRequest` if they disagree."""
    said = {name: (name, str(value)[:32]) for name, value in read.items()}
    for name in ("size", "image_size"):
        if name in read:
            width, height = read.pop(name)
            as_said = (name, f"{width}x{height}")
            _merge(read, as_said, {"width": width, "height": height}, said)
    for name, own in OTHER_NAMES.items():
        if name in read:
            _merge(read, said[name], {own: read.pop(name)}, said)
    spelt = {part: said[part][0] for part in read if said[part][0] != part}
    return {**read, "spelt": spelt}


def _merge(
    read: dict[str, Any],
    as_said: tuple[str, str],
    parts: Mapping[str, Any],
    said: dict[str, tuple[str, str]],
) -> None:
    """Add `parts` in place of a field, which the caller wrote `as_said`, name and value. Raises
    `InvalidRequest` if one is there and differs; `said` has what stands for each part."""
    for part, value in parts.items():
        if read.setdefault(part, value) != value:
            name, shown = said[part]
            message = f"{as_said[0]} {as_said[1]} and {name} {shown} disagree"
            raise InvalidRequest(message, param=name)
        said[part] = as_said


@described({"type": "string", "pattern": rf"^(auto|{_SIZE.pattern})$"})
def _size(name: str, value: Any) -> object:
    """`WxH` in pixels as (width, height); `auto` means the checkpoint's own size, or that of the
    picture that is edited."""
    if value == "auto":
        return DROP
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise wrong(name, "'auto' or WIDTHxHEIGHT in pixels such as '1024x768'", value)
    return int(found[1]), int(found[2])


_KNOWN_QUALITY = one_of(*QUALITIES)


@described(
    {"type": "string", "enum": list(QUALITIES), "description": "Ignored; `tier` sets exactness."}
)
def _quality(name: str, value: Any) -> object:
    if isinstance(value, str) and value in ("lossless", "turbo"):
        message = f"{name} {value!r} is not supported: a tier is asked for with tier"
        raise InvalidRequest(message, param=name)
    _KNOWN_QUALITY.check(name, value)
    return DROP


_FILE_METADATA = one_of("default", "full")


@described(
    {
        "anyOf": [dict(_FILE_METADATA.schema), {"type": "object"}],
        "description": "`full` adds the prompt to the file; OpenAI's object is ignored.",
    }
)
def _metadata(name: str, value: Any) -> object:
    return DROP if isinstance(value, dict) else _FILE_METADATA.check(name, value)


OWN_FIELDS: dict[str, DescribedRule] = {
    "model": said("Name of the model or of one of its aliases.", text()),
    "prompt": said("What the picture shows.", text(at_most=MAX_PROMPT)),
    "negative_prompt": said(
        "What the picture shall not show; blank is none.", text(at_most=MAX_PROMPT)
    ),
    "n": said("Pictures of one prompt; picture i uses seed + i.", whole(1, MAX_N), default=1),
    "size": said(
        "`WIDTHxHEIGHT` in pixels, or `auto` for the model's own size.", _size, default="auto"
    ),
    "width": said("Width in pixels.", whole(1, MAX_SIDE)),
    "height": said("Height in pixels.", whole(1, MAX_SIDE)),
    "seed": seed_or_drawn,
    "num_inference_steps": said("Denoise steps; more take longer.", whole(1, 10**6)),
    "guidance_scale": said("How closely a guided model follows the prompt.", number(0, 1e6)),
    "true_cfg_scale": said(
        "Weight of the prompt against the negative one; above 1 each step costs a second pass.",
        number(0, 1e6),
    ),
    "max_sequence_length": said("Tokens of the prompt that are read.", whole(1, 10**6)),
    "tier": said(
        "How much exactness may be given up for speed: `lossless`, `high` or `turbo`.", text()
    ),
    "loras": loras,
    "quality": _quality,
    "output_format": said("Kind of file.", one_of("png", "jpeg", "webp"), default="png"),
    "output_compression": said("Quality of JPEG and WebP files, in percent.", whole(0, 100)),
    "response_format": said(
        "The file as base64, or its address.", one_of(B64_JSON, URL), default="b64_json"
    ),
    **STREAM_FIELDS,
    # these can't change the answer
    **CLIENT_FIELDS,
    # but for full metadata in the file
    "metadata": _metadata,
    # these are only taken at the value that is served anyway
    "style": only_values("auto", "natural", "vivid", why="the prompt is what sets the style"),
    "moderation": only_values("auto", "low", why="there is no moderation to be set"),
    "background": only_values("auto", "opaque", why="pictures are opaque"),
    # standard in other parts of OpenAI's images API
    "image": only_values(why=_EDITS),
    "images": only_values(why=_EDITS),
    "mask": only_values(why=_EDITS),
    "strength": only_values(why=_EDITS),
    "input_fidelity": only_values(why=_EDITS),
    "complexity": only_values(why="only raster pictures are drawn"),
    "svg": only_values(why="only raster pictures are drawn"),
    "frame_count": only_values(why="pictures do not move"),
    "frame_duration_ms": only_values(why="pictures do not move"),
}
"""OpenAI's and our own fields."""
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("steps", "step"), "num_inference_steps"),
    **dict.fromkeys(("num_images", "num_outputs", "num_images_per_prompt", "batch_size"), "n"),
    **dict.fromkeys(("guidance", "distilled_cfg_scale"), "guidance_scale"),
}
"""Our own fields, by their names at other services."""


def _same_as(own: str) -> DescribedRule:
    rule = OWN_FIELDS[own]
    values = {key: each for key, each in rule.schema.items() if key not in ("default", "title")}
    return DescribedRule(rule.check, {**values, "description": f"The same as `{own}`."})


_SIDES = {"width": whole(1, MAX_SIDE), "height": whole(1, MAX_SIDE)}


@described(
    {
        "anyOf": [
            {"type": "string", "pattern": rf"^(auto|{_SIZE.pattern}|{'|'.join(NAMED_SIZES)})$"},
            object_schema(_SIDES, "width", "height"),
        ],
        "description": "The same as `size`; also fal's names, and an object of both sides.",
    }
)
def _image_size(name: str, value: Any) -> object:
    if isinstance(value, dict):
        read = read_fields(value, _SIDES, where=name)
        require(read, "width", "height", where=name)
        return read["width"], read["height"]
    is_name = isinstance(value, str) and value in NAMED_SIZES
    return NAMED_SIZES[value] if is_name else _size.check(name, value)


SERVICES: Mapping[str, DescribedRule] = {
    **{name: _same_as(own) for name, own in OTHER_NAMES.items()},
    "image_size": _image_size,
}
"""Other services' names of our own fields."""
FIELDS: dict[str, DescribedRule] = {**merged(IMAGE_CLIENTS), **SERVICES, **OWN_FIELDS}
