"""A reader for protobuf's wire format that counts fields while it reads.

protobuf's own parser builds all fields before they can be counted. 25 million unknown fields fit
into 50 MB and would take seconds and gigabytes. Format:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from predictors.errors import InvalidRequest, TooLarge

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are refused
MAX_VARINT_BYTES = 10
MAX_FIELD_NUMBER = 2**29 - 1

_HIGH_BYTES = bytes(range(0x80, 0x100))  # all bytes of a varint except its last
_FIXED = {FIXED64: 8, FIXED32: 4}

Span = tuple[int, int]
"""Where a field's bytes begin and end."""


class WireReader:
    """Reads one message. `max_fields` bounds all its fields together, nested ones included."""

    def __init__(self, raw: bytes, max_fields: int) -> None:
        self.raw = raw
        self._max_fields = max_fields
        self._left = max_fields

    @property
    def whole(self) -> Span:
        return 0, len(self.raw)

    def fields(self, span: Span) -> Iterator[tuple[int, int, int, Span]]:
        """Yield number, wire type, value (of a varint, else 0) and span of each field in `span`.

        Raises `InvalidRequest` for malformed bytes, `TooLarge` for too many fields.
        """
        position, end = span
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise TooLarge(f"the message has more than {self._max_fields} fields")
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number <= MAX_FIELD_NUMBER:
                raise malformed_message()
            value = 0
            begin = position
            if wire == VARINT:
                value, position = self.varint(position, end)
            elif wire == LENGTH:
                length, begin = self.varint(position, end)
                position = begin + length
            elif wire in _FIXED:
                position += _FIXED[wire]
            else:
                raise malformed_message()
            if position > end:
                raise malformed_message()
            yield number, wire, value, (begin, position)

    def varint(self, position: int, end: int) -> Span:
        """Return an unsigned varint and the position after it."""
        raw = self.raw
        value = shift = 0
        for position in range(position, min(end, position + MAX_VARINT_BYTES)):  # noqa: B020
            byte = raw[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
            shift += 7
        raise malformed_message()

    def bytes(self, span: Span) -> bytes:
        return self.raw[span[0] : span[1]]

    def text(self, span: Span) -> str:
        """A UTF-8 string field. Raises `InvalidRequest`."""
        try:
            return self.bytes(span).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest("the message has a text that is not UTF-8") from error

    def varints(self, span: Span, at_most: int) -> list[int]:
        """All values of a packed field. Raises `TooLarge` before building more than `at_most`."""
        packed = self.bytes(span)
        if len(packed.translate(None, _HIGH_BYTES)) > at_most:
            raise TooLarge(f"a packed field of the message has more than {at_most} elements")
        found = []
        position, end = span
        while position < end:
            value, position = self.varint(position, end)
            found.append(value)
        return found

    def fixed(self, span: Span, kind: str, at_most: int) -> list[float]:
        """All values of a field of `kind` ("f" or "d"), packed or not. Raises `TooLarge`."""
        size, length = struct.calcsize("<" + kind), span[1] - span[0]
        if length % size:
            raise malformed_message()
        if length // size > at_most:
            raise TooLarge(f"a packed field of the message has more than {at_most} elements")
        return list(struct.unpack(f"<{length // size}{kind}", self.bytes(span)))


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def malformed_message() -> InvalidRequest:
    return InvalidRequest("the message is not a valid ModelInferRequest")
