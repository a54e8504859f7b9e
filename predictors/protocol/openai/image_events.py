"""Streams of pictures in OpenAI's events, of generations and edits alike: the fields that ask for
them and the events as bytes.

Every event has a name and a `type` that are the same. Worker processes import this module, so
nothing here loads gRPC.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from predictors.errors import InvalidRequest
from predictors.protocol.openai.events import named_event
from predictors.protocol.openai.fields import (
    MAX_PARTIAL_IMAGES,
    DescribedRule,
    flag,
    said,
    whole,
)

GENERATION, EDIT = "image_generation", "image_edit"
"""Prefixes of the event names of the two routes."""

STREAM_FIELDS: Mapping[str, DescribedRule] = {
    "stream": said("Answer with server-sent events.", flag, default=False),
    "partial_images": said(
        "Previews to send before the picture; needs `stream`.",
        whole(0, MAX_PARTIAL_IMAGES),
        default=0,
    ),
    "progress": said("One event per step; needs `stream`.", flag, default=False),
}
"""Fields of every route that draws."""


def check_stream(read: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for checked fields that a stream, or an answer without one, can't
    have."""
    if not read.get("stream"):
        for name in ("partial_images", "progress"):
            if read.get(name):
                message = f"{name} needs a stream: send 'stream': true, or leave {name} out"
                raise InvalidRequest(message, param=name)
        return
    if read.get("n", 1) > 1:
        message = f"Streaming is only supported with n=1, not {read['n']}"  # OpenAI's words
        raise InvalidRequest(f"{message}; send a request for each picture", param="n")
    if read.get("response_format") == "url":
        raise InvalidRequest(
            "response_format 'url' is not supported with 'stream': the events have b64_json",
            param="response_format",
        )


@dataclass(frozen=True, slots=True)
class ImageEvents:
    """The events of one streamed picture."""

    kind: str
    """`GENERATION` or `EDIT`."""
    size: str
    """WIDTHxHEIGHT."""
    output_format: str

    def progress(self, step: int, steps: int) -> bytes:
        """Ours: OpenAI's clients read an event of an unknown type as it is."""
        return self._event("progress", {"step": step, "steps": steps})

    def partial(self, index: int, file: bytes) -> bytes:
        """Takes milliseconds for a large file, so it is for a pool thread."""
        fields = {
            **encoded_file(base64.b64encode(file).decode()),
            "partial_image_index": index,
            **self._common(),
        }
        return self._event("partial_image", fields)

    def completed(self, answer: Mapping[str, Any]) -> bytes:
        """From the answer of one picture without a stream: all its fields in one object. Pool
        thread."""
        (picture,) = answer["data"]
        rest = {name: x for name, x in answer.items() if name not in ("created", "data")}
        own = {name: x for name, x in picture.items() if name != "b64_json"}
        fields = {**encoded_file(picture["b64_json"]), **self._common(), **own, **rest}
        return self._event("completed", fields)

    def _common(self) -> dict[str, Any]:
        return {
            "created_at": int(time.time()),
            "size": self.size,
            "quality": "auto",  # what is asked for changes nothing
            "background": "opaque",
            "output_format": self.output_format,
        }

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        kind = f"{self.kind}.{name}"
        return named_event(kind, {"type": kind, **fields})


def error_event(body: bytes) -> bytes:
    """The last event of a stream that failed, from the body of an error."""
    return b'event: error\ndata: %b,"type":"error"}\n\n' % body[:-1]


def encoded_file(base64_text: str) -> dict[str, Any]:
    """The field of a picture's file."""
    # base64 needs no escapes: the encoder copies it as it is
    return {"b64_json": orjson.Fragment(b'"%b"' % base64_text.encode())}
