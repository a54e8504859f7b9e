"""The body of `POST /v1/images/generations`, checked field by field.

`read_images_body` checks names, types and ranges that hold for every text-to-image model. Limits of
a checkpoint (multiples of 16, largest side, steps) are checked by its codec. Worker processes
import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    DROP,
    MAX_SEED,
    DecodedBody,
    Rule,
    check_body,
    number,
    one_of,
    only_values,
    read_fields,
    require,
    text,
    whole,
    wrong,
)

MAX_N = 16  # OpenAI's is 10
MAX_PROMPT = 2**21  # characters that are read; the codec's limit is lower
MAX_SIDE = 65_536  # largest number that is read; the codec's limit is lower
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class ImagesBody:
    """A checked body. None means that the field is absent or null; sides are in pixels."""

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
    output_format: str | None = None
    output_compression: int | None = None
    spelt: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The caller's field for each one that came under another name: `width` from `size`."""


def decode_images_body(raw: bytes) -> DecodedBody[ImagesBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_images_body)


def read_images_body(body: object) -> ImagesBody:
    """The body, with `size` as `width` and `height`. Raises `InvalidRequest` naming the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "prompt")
    spelt: dict[str, str] = {}
    if "size" in read:
        width, height = read.pop("size")
        _merge(read, "size", f"{width}x{height}", {"width": width, "height": height}, spelt)
    if "quality" in read:
        quality = read.pop("quality")
        _merge(read, "quality", quality, {"tier": quality}, spelt)
    return ImagesBody(**read, spelt=spelt)


def _merge(
    read: dict[str, Any], name: str, shown: str, parts: Mapping[str, Any], spelt: dict[str, str]
) -> None:
    """Add `parts` in place of `name`. Raises `InvalidRequest` if one is there and differs."""
    for part, value in parts.items():
        if read.setdefault(part, value) != value:
            message = f"{name} {shown} and {part} {str(read[part])[:32]} disagree"
            raise InvalidRequest(message, param=part)
        spelt[part] = name


def _size(name: str, value: Any) -> object:
    """`WxH` in pixels as (width, height); `auto` means the checkpoint's own size."""
    if value == "auto":
        return DROP
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise wrong(name, "'auto' or WIDTHxHEIGHT in pixels such as '1024x768'", value)
    return int(found[1]), int(found[2])


def _response_format(name: str, value: Any) -> object:
    if value == "url":
        why = "pictures are not kept, so there is no address to give; ask for 'b64_json'"
        raise InvalidRequest(f"{name} 'url' is not supported: {why}", param=name)
    one_of("b64_json")(name, value)
    return DROP


def _quality(name: str, value: Any) -> object:
    """OpenAI's word for a `tier`; `auto` and `standard` mean the model's default."""
    one_of("auto", "standard", "lossless", "high", "turbo")(name, value)
    return DROP if value in {"auto", "standard"} else value


FIELDS: dict[str, Rule] = {
    "model": text(),
    "prompt": text(at_most=MAX_PROMPT),
    "negative_prompt": text(at_most=MAX_PROMPT),
    "n": whole(1, MAX_N),
    "size": _size,
    "width": whole(1, MAX_SIDE),
    "height": whole(1, MAX_SIDE),
    "seed": whole(0, MAX_SEED),
    "num_inference_steps": whole(1, 10**6),
    "guidance_scale": number(0, 1e6),
    "true_cfg_scale": number(0, 1e6),
    "max_sequence_length": whole(1, 10**6),
    "tier": text(),
    "quality": _quality,
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": whole(0, 100),
    "response_format": _response_format,
    # these can't change the answer
    **CLIENT_FIELDS,
    # these are only taken at the value that is served anyway
    "style": only_values("auto", why="the prompt is what sets the style"),
    "moderation": only_values("auto", why="there is no moderation to be set"),
    "background": only_values("auto", "opaque", why="pictures are opaque"),
    "partial_images": only_values(0, why="only finished pictures are sent"),
    "stream": only_values(False, why="only finished pictures are sent"),
    # standard in other parts of OpenAI's images API
    "image": only_values(why="pictures are drawn from words only"),
    "mask": only_values(why="pictures are drawn from words only"),
    "input_fidelity": only_values(why="pictures are drawn from words only"),
    "complexity": only_values(why="only raster pictures are drawn"),
    "svg": only_values(why="only raster pictures are drawn"),
    "frame_count": only_values(why="pictures do not move"),
    "frame_duration_ms": only_values(why="pictures do not move"),
}
