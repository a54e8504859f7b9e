"""Server-sent events of OpenAI's routes as bytes, with and without a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # nginx would hold the events back
)
_NO_TEXT = b'"content":""'


def event(chunk: Mapping[str, Any]) -> bytes:
    return framed(orjson.dumps(chunk))


def framed(payload: bytes) -> bytes:
    """`payload`, which must not have a line break, as one event."""
    return b"data: %b\n\n" % payload


def named_event(name: str, fields: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(fields))


DONE = framed(b"[DONE]")
"""The event that ends a complete answer."""


class TextEvents:
    """Events that differ from `chunk` in their text only; the same bytes as `event` makes."""

    def __init__(self, chunk: Mapping[str, Any]) -> None:
        """`chunk` must have exactly one `content`, the empty text."""
        # not found inside a string, where quotes have a backslash before them
        before, after = framed(orjson.dumps(chunk)).split(_NO_TEXT)
        self._before, self._after = before + _NO_TEXT[:-2], after

    def event(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, orjson.dumps(text), self._after)
