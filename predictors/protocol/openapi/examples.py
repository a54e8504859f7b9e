"""Examples of bodies in the OpenAPI document. A test sends each of them to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from predictors.protocol.openapi.parts import Json
from predictors.protocol.serves import Served, ServesChat

_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAAA1BMVEXcKChLAffeAAAA"
    "D0lEQVR42mNgGAWjgHwAAAJAAAHgTR1EAAAAAElFTkSuQmCC"
)
"""A picture of one colour, 64 pixels a side."""
_SCHEMA = {"type": "object", "properties": {"colour": {"type": "string", "maxLength": 16}}}
_ASK: Json = {"role": "user", "content": "What is in a picture of a red circle?"}
_LOOK: Json = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": _PICTURE}},
        {"type": "text", "text": "Which colour is this?"},
    ],
}
_SEE: Json = {
    "role": "user",
    "content": [
        {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": _PICTURE.partition(",")[2],
            },
        },
        {"type": "text", "text": "Which colour is this?"},
    ],
}
_FEW: Json = {"max_tokens": 16}
_BODIES: Mapping[str, Mapping[str, Json]] = {
    "chat": {
        "text": {"messages": [_ASK], **_FEW},
        "picture": {"messages": [_LOOK], **_FEW, "temperature": 0},
        "stream": {
            "messages": [_ASK],
            **_FEW,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "json": {
            "messages": [_LOOK],
            "max_tokens": 32,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "found", "schema": _SCHEMA},
            },
        },
    },
    "responses": {
        "text": {"input": _ASK["content"], "max_output_tokens": 16},
        "stream": {"input": _ASK["content"], "max_output_tokens": 16, "stream": True},
    },
    "messages": {
        "text": {"messages": [_ASK], **_FEW},
        "picture": {"messages": [_SEE], **_FEW, "temperature": 0},
        "stream": {"messages": [_ASK], **_FEW, "stream": True},
    },
    "count_tokens": {"text": {"system": "Be brief.", "messages": [_ASK]}},
    "completions": {
        "text": {"prompt": "a red", **_FEW},
        "stream": {"prompt": "a red", **_FEW, "stream": True},
    },
    "images": {
        "picture": {"prompt": "a red circle"},
        "seeded": {"prompt": "a red circle", "seed": 7, "n": 2},
        "stream": {"prompt": "a red circle", "stream": True, "partial_images": 2, "progress": True},
    },
    "edits": {"picture": {"prompt": "a blue square", "image": _PICTURE}},
    "tokenize": {
        "text": {"prompt": "a red circle", "return_token_strs": True},
        "chat": {"messages": [_ASK]},
    },
    "detokenize": {"tokens": {"tokens": [1, 2, 3]}},
}
"""By the name of a route and of an example, without the model."""


def examples(route: str, served: Sequence[Served], names: Mapping[str, Served]) -> Json:
    """Examples of a route's body, for the first model that serves it."""
    model = next(name for name, found in names.items() if found is served[0])
    return {
        name: {"summary": name, "value": {"model": model, **body}}
        for name, body in _BODIES[route].items()
    }


def infer_examples(model: Served) -> Json:
    """Examples of a V2 inference request."""
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}
    parameters: dict[str, Any] = (
        {"max_tokens": 16} if isinstance(model, ServesChat) else {"seed": 7}
    )
    value = {"id": "1", "inputs": [tensor], "parameters": parameters}
    return {"text": {"summary": "text", "value": value}}
