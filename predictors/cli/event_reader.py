"""Reads server-sent events whose data is JSON, from pieces of bytes as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from predictors.cli.outcomes import NO_SERVER, VerbFailed

MAX_EVENT_BYTES = 256 * 2**20
"""Of one event: a picture as base64 fits."""


class EventReader:
    """The events of one stream. `is_done` is true once `[DONE]` has come."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self.is_done = False

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The events that `piece` completes. Raises `VerbFailed` for what is no JSON object."""
        *ended, rest = piece.split(b"\n")
        for each in ended:
            self._line += each
            line = bytes(self._line)
            self._line.clear()
            yield from self._take(line.removesuffix(b"\r"))
        self._line += rest
        if len(self._line) + self._held > MAX_EVENT_BYTES:
            raise VerbFailed("the server sends an event without an end", NO_SERVER)

    def _take(self, line: bytes) -> Iterator[dict[str, Any]]:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._held += len(value)
        if line or not self._data:
            return
        data = b"\n".join(self._data)
        self._data, self._held = [], 0
        if data == b"[DONE]":
            self.is_done = True
        else:
            yield read_object(data)


def read_object(content: bytes) -> dict[str, Any]:
    """A JSON object; raises `VerbFailed` for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise VerbFailed("the server answers with something that is no JSON object", NO_SERVER)
    return found
