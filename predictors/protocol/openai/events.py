"""Server-sent events of an OpenAI stream, from JSON to bytes. Knows no field but a delta's text.

A stream is mostly events that differ in one text. What stands around it is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

_NO_TEXT = b'"content":""'


def event(chunk: Mapping[str, Any]) -> bytes:
    """One event, framing included."""
    return framed(orjson.dumps(chunk))


def framed(payload: bytes) -> bytes:
    """`payload`, which has no line break, as one event."""
    return b"data: %b\n\n" % payload


DONE = framed(b"[DONE]")
"""What says that the answer is complete."""


class TextEvents:
    """Events that are `chunk` with another text: the same bytes as `event` makes of it."""

    def __init__(self, chunk: Mapping[str, Any]) -> None:
        """`chunk` has exactly one `content`, the empty text."""
        # it can't be found inside a string: a quote in there has a backslash before it
        before, after = framed(orjson.dumps(chunk)).split(_NO_TEXT)
        self._before, self._after = before + _NO_TEXT[:-2], after

    def event(self, text: str) -> bytes:
        """The event with `text`."""
        return b"%b%b%b" % (self._before, orjson.dumps(text), self._after)
