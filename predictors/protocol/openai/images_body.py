"""The fields of a body of `POST /v1/images/generations`, checked.

`read_body` checks what every text-to-image model shares: names, types and ranges that hold for
all. Whatever depends on the checkpoint (multiples of 16, largest side, step limit) is the room's
to check. Workers import this module: nothing here loads gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.json_bodies import parse_json
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    DROP,
    MAX_SEED,
    OpenAIBody,
    Rule,
    harmless,
    number,
    one_of,
    read_fields,
    read_openai,
    require,
    text,
    whole,
    wrong,
)

MAX_N = 16  # OpenAI's is 10
MAX_PROMPT = 2**21  # characters of a text that is handed on at all; the room's limit is lower
MAX_SIDE = 65_536  # of a number that is read at all; the room's limit is lower
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


def _size(name: str, value: Any) -> object:
    """`WxH` in pixels as (width, height); `auto` is the checkpoint's own size."""
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
    """OpenAI's word for a `tier`; what it says when it says nothing is the model's default."""
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
    # cannot change the answer
    **CLIENT_FIELDS,
    # only at the value that is served anyway
    "style": harmless("auto", why="the prompt is what sets the style"),
    "moderation": harmless("auto", why="there is no moderation to be set"),
    "background": harmless("auto", "opaque", why="pictures are opaque"),
    "partial_images": harmless(0, why="only finished pictures are sent"),
    "stream": harmless(False, why="only finished pictures are sent"),
    # standard elsewhere on OpenAI's images API
    "image": harmless(why="pictures are drawn from words only"),
    "mask": harmless(why="pictures are drawn from words only"),
    "input_fidelity": harmless(why="pictures are drawn from words only"),
    "complexity": harmless(why="only raster pictures are drawn"),
    "svg": harmless(why="only raster pictures are drawn"),
    "frame_count": harmless(why="pictures do not move"),
    "frame_duration_ms": harmless(why="pictures do not move"),
}


class ImagesBody(dict[str, Any]):
    """A checked body. It remembers which fields came under another name, so that an error says
    the caller's."""

    def __init__(self, read: Mapping[str, Any]) -> None:
        super().__init__(read)
        self.spelt: dict[str, str] = {}

    def spell_out(self, name: str, parts: Mapping[str, Any]) -> None:
        """Put `parts` in place of the field `name`; raises `InvalidRequest` where they are there
        and differ."""
        shown = self.pop(name)
        shown = "x".join(map(str, shown)) if isinstance(shown, tuple) else shown
        for part, value in parts.items():
            if self.setdefault(part, value) != value:
                message = f"{name} {shown} and {part} {str(self[part])[:32]} disagree"
                raise InvalidRequest(message, param=part)
            self.spelt[part] = name


def read_body(body: object) -> ImagesBody:
    """The checked body: absent fields are absent, ignored ones dropped, `size` replaced by
    `width` and `height`, `quality` by `tier`.

    Keys and types: `model` str, `prompt` str, and if given `negative_prompt` str, `n` int,
    `width` and `height` int (pixels), `seed` int, `num_inference_steps` int, `guidance_scale`
    float, `true_cfg_scale` float, `max_sequence_length` int, `output_format` png|jpeg|webp,
    `output_compression` int (0 to 100), `tier` str. Raises `InvalidRequest` that names the field.
    """
    read = ImagesBody(read_fields(body, FIELDS))
    require(read, "model", "prompt")
    if "size" in read:
        read.spell_out("size", dict(zip(("width", "height"), read["size"], strict=True)))
    if "quality" in read:
        read.spell_out("quality", {"tier": read["quality"]})
    return read


def decode(raw: bytes) -> OpenAIBody:
    """The checked body of a request."""
    return read_openai(parse_json(raw), read_body)
