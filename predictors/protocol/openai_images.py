"""`POST /v1/images/generations`: the fields of a body and its route. Knows no model and draws
nothing.

`read_body` checks what every text-to-image model shares: names, types and ranges that hold for
all. Whatever depends on the checkpoint (multiples of 16, largest side, step limit) is the room's
to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.openai_edge import Operation
from predictors.protocol.openai_fields import (
    DROP,
    MAX_SEED,
    Rule,
    harmless,
    ignored,
    number,
    one_of,
    read_fields,
    require,
    text,
    whole,
    wrong,
)
from predictors.protocol.rest import Reply, json_reply
from predictors.protocol.serves import ServesImages

MAX_N = 16  # OpenAI's is 10
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


FIELDS: dict[str, Rule] = {
    "model": text(),
    "prompt": text(),
    "negative_prompt": text(),
    "n": whole(1, MAX_N),
    "size": _size,
    "width": whole(1, MAX_SIDE),
    "height": whole(1, MAX_SIDE),
    "seed": whole(0, MAX_SEED),
    "num_inference_steps": whole(1, 10**6),
    "guidance_scale": number(0, 1e6),
    "true_cfg_scale": number(0, 1e6),
    "max_sequence_length": whole(1, 10**6),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": whole(0, 100),
    "response_format": _response_format,
    # cannot change the answer
    "user": ignored(str),
    "metadata": ignored(dict),
    "store": ignored(bool),
    "safety_identifier": ignored(str),
    "service_tier": ignored(str),
    "prompt_cache_key": ignored(str),
    # only at the value that is served anyway
    "quality": harmless("auto", "standard", why="num_inference_steps is what sets the quality"),
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
    """A checked body. It remembers that its sides came as `size`, so that an error names that."""

    has_size = False


def read_body(body: object) -> ImagesBody:
    """The checked body: absent fields are absent, ignored ones dropped, `size` replaced by
    `width` and `height`.

    Keys and types: `model` str, `prompt` str, and if given `negative_prompt` str, `n` int,
    `width` and `height` int (pixels), `seed` int, `num_inference_steps` int, `guidance_scale`
    float, `true_cfg_scale` float, `max_sequence_length` int, `output_format` png|jpeg|webp,
    `output_compression` int (0 to 100). Raises `InvalidRequest` that names the field.
    """
    read = ImagesBody(read_fields(body, FIELDS))
    require(read, "model", "prompt")
    if "size" not in read:
        return read
    read.has_size = True
    width, height = read.pop("size")
    for name, side in (("width", width), ("height", height)):
        if read.setdefault(name, side) != side:
            message = f"size {width}x{height} and {name} {read[name]} disagree"
            raise InvalidRequest(message, param=name)
    return read


async def _reply(model: ServesImages, body: Mapping[str, Any], call: Call) -> Reply:
    try:
        return json_reply(await model.images(body, call))
    except InvalidRequest as error:
        if error.param in {"width", "height"} and getattr(body, "has_size", False):
            error.param = "size"  # that is how the caller spelt it
        raise


IMAGES = Operation(
    name="images",
    route="/images/generations",
    read_body=read_body,
    serves=lambda model: isinstance(model, ServesImages),
    reply=_reply,
)
