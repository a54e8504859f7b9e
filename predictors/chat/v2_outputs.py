"""The output tensors of a chat's V2 answer: texts, counts and sizes, and what only some ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from predictors.chat.chunks import Completion, list_boxes, list_calls
from predictors.chat.logprobs import LogprobWriter
from predictors.chat.request import PictureSize
from predictors.chat.tools.tool_parameters import TOOL_CALLS
from predictors.protocol.v2.values import Tensor

LOGPROBS = "logprobs"
"""V2's output, and the parameter that asks for it."""
OUTPUT_TYPES = [
    {"name": "text", "datatype": "BYTES", "shape": [-1]},
    {"name": "finish_reason", "datatype": "BYTES", "shape": [-1]},
    {"name": "prompt_tokens", "datatype": "INT64", "shape": [-1]},
    {"name": "completion_tokens", "datatype": "INT64", "shape": [-1]},
    {"name": "image_width", "datatype": "INT64", "shape": [-1]},
    {"name": "image_height", "datatype": "INT64", "shape": [-1]},
    {"name": "image_tokens", "datatype": "INT64", "shape": [-1]},
    {"name": LOGPROBS, "datatype": "BYTES", "shape": [-1]},
    {"name": TOOL_CALLS, "datatype": "BYTES", "shape": [-1]},
    {"name": "boxes", "datatype": "BYTES", "shape": [-1]},
]
NO_PICTURE = PictureSize(0, 0, 0)


def output_tensors(
    completions: Sequence[Completion], writer: LogprobWriter | None
) -> tuple[Tensor, ...]:
    """One element per row. Logprobs, boxes and calls are there where they were asked for; `writer`
    is None where no logprobs were."""
    sizes = [
        next((size for size in c.pictures if isinstance(size, PictureSize)), NO_PICTURE)
        for c in completions
    ]  # one picture per row
    columns: list[tuple[str, list[Any]]] = [
        ("text", [c.text.encode() for c in completions]),
        ("finish_reason", [c.finish_reason.encode() for c in completions]),
        ("prompt_tokens", [c.prompt_tokens for c in completions]),
        ("completion_tokens", [c.completion_tokens for c in completions]),
        ("image_width", [size.width for size in sizes]),
        ("image_height", [size.height for size in sizes]),
        ("image_tokens", [size.tokens for size in sizes]),
    ]
    if writer is not None:
        columns.append((LOGPROBS, [orjson.dumps(writer.whole(c.scores)) for c in completions]))
    if any(c.boxes is not None for c in completions):
        said = [json.dumps(list_boxes(c.boxes or ())).encode() for c in completions]
        columns.append(("boxes", said))
    if any(c.calls is not None for c in completions):
        called = [orjson.dumps(list_calls(c.calls or ())) for c in completions]
        columns.append((TOOL_CALLS, called))
    shape = (len(completions),)
    types = {entry["name"]: str(entry["datatype"]) for entry in OUTPUT_TYPES}
    return tuple(Tensor(n, types[n], shape, c, text=types[n] == "BYTES") for n, c in columns)
