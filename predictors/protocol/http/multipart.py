"""Reads `multipart/form-data` bodies (RFC 7578) that are in memory as a whole.

python-multipart finds boundaries and headers. Parts, headers and names are bounded here, and
nothing is written to a file. Time and memory are linear in the body's length.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from predictors.errors import InvalidRequest, TooLarge

FORM_MEDIA = "multipart/form-data"
MAX_PARTS = 256
MAX_BOUNDARY = 70  # characters; RFC 2046, 5.1.1
MAX_HEADERS = 8  # of one part; browsers and libraries send three
MAX_HEADER_BYTES = 4096  # of one line
MAX_NAME_BYTES = 256

# possessive quantifiers: one scan, whatever the quotes and backslashes
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"((?:[^"\\]|\\.)*+)"'
_PARAMETER = re.compile(rb"[ \t]*+;[ \t]*+(%b)=(?:%b|([^;\" \t]*+))" % (_TOKEN, _QUOTED), re.DOTALL)
_END = re.compile(rb"[ \t]*+;?[ \t]*+")
_TYPE = re.compile(rb"[ \t]*+(%b(?:/%b)?)" % (_TOKEN, _TOKEN))
_ESCAPED = re.compile(rb'\\(["\\])')
# RFC 2046, 5.1.1: no space at the end
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_IDENTITY = frozenset({b"7bit", b"8bit", b"binary"})
_UTF_8 = frozenset({b"", b"utf-8", b"utf8", b"us-ascii"})

# it reports each malformed body, so callers could fill the log
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class Part:
    """One field of a form: its name, and its bytes as they were sent."""

    name: str
    data: bytes
    is_file: bool
    """True for a part with a file name."""

    def text(self) -> str:
        """Raises `InvalidRequest` for bytes that are not UTF-8."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            shown = self.name[:64]
            raise InvalidRequest(f"{shown} is not UTF-8", param=shown) from error


def is_form(content_type: str) -> bool:
    """True for a content type whose body `read_form` reads."""
    return content_type.partition(";")[0].strip().lower() == FORM_MEDIA


def read_form(raw: bytes, content_type: str) -> list[Part]:
    """The parts in their order. Raises `InvalidRequest` or `TooLarge` with the reason.

    Milliseconds per megabyte, with the interpreter's lock held: a form of more than 64 KiB belongs
    in a worker process.
    """
    boundary = _boundary_of(content_type)
    # what begins with the delimiter is no data (RFC 2046, 5.1.1), whatever follows
    if raw.count(b"\r\n--" + boundary) > MAX_PARTS:
        raise TooLarge(f"the form has more than {MAX_PARTS} parts")
    reader = _Reader()
    parser = MultipartParser(
        boundary,
        callbacks={
            "on_part_begin": reader.begin_part,
            "on_header_begin": reader.begin_header,
            "on_header_field": reader.add_header_name,
            "on_header_value": reader.add_header_value,
            "on_header_end": reader.end_header,
            "on_part_data": reader.add_data,
            "on_part_end": reader.end_part,
            "on_end": reader.end,
        },
        max_header_count=MAX_HEADERS,
        max_header_size=MAX_HEADER_BYTES,
    )
    try:
        parser.write(raw)
    except FormParserError as error:
        raise InvalidRequest(_problem(raw, boundary, getattr(error, "offset", -1))) from error
    if not reader.is_complete:
        closing = "its closing boundary, --BOUNDARY--"
        raise InvalidRequest(f"the form ends after {len(raw)} bytes without {closing}")
    return reader.parts


def _problem(raw: bytes, boundary: bytes, offset: int) -> str:
    where = f"at byte {offset} of {len(raw)}" if offset >= 0 else f"of {len(raw)} bytes"
    if b"--" + boundary not in raw:
        return "the form does not have the boundary that its content-type names"
    if raw.startswith(b"--" + boundary + b"\n"):
        return "the form's lines end with LF; RFC 7578 has CRLF"
    limits = f"at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in a part"
    return f"the form is malformed {where}: it must be multipart/form-data with CRLF, {limits}"


def _boundary_of(content_type: str) -> bytes:
    media, options = _read_options(content_type.encode("latin-1", "replace"))
    name = "content-type"
    if media != FORM_MEDIA.encode():
        raise InvalidRequest(f"{name} must be {FORM_MEDIA} with a boundary", param=name)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest(f"{name} {FORM_MEDIA} has no boundary", param=name)
    if not _BOUNDARY.fullmatch(boundary):
        message = f"the boundary in {name} must be 1 to {MAX_BOUNDARY} characters of RFC 2046"
        raise InvalidRequest(message, param=name)
    return boundary


def _read_options(value: bytes) -> tuple[bytes, Mapping[bytes, bytes]]:
    """The first word of a header's value in lower case, and its parameters.

    Raises `InvalidRequest` for another form and for a parameter that is there twice.
    """
    found = _TYPE.match(value)
    if found is None:
        raise InvalidRequest("a header of the form is malformed")
    options: dict[bytes, bytes] = {}
    position = found.end()
    while (each := _PARAMETER.match(value, position)) is not None:
        name, quoted, plain = each[1].lower(), each[2], each[3]
        if name in options:
            shown = name[:32].decode("ascii")
            raise InvalidRequest(f"a header of the form has {shown} twice")
        options[name] = plain if quoted is None else _ESCAPED.sub(rb"\1", quoted)
        position = each.end()
    if not _END.fullmatch(value, position):
        raise InvalidRequest("a header of the form is malformed")
    return found[1].lower(), options


class _Reader:
    """The callbacks of the parser: collects parts, and checks each one's headers."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = self._data = b""

    def begin_part(self) -> None:
        self._headers = {}
        self._data = b""

    def begin_header(self) -> None:
        self._name = self._value = b""

    def add_header_name(self, raw: bytes, begin: int, end: int) -> None:
        self._name += raw[begin:end]

    def add_header_value(self, raw: bytes, begin: int, end: int) -> None:
        self._value += raw[begin:end]

    def end_header(self) -> None:
        name = self._name.lower()
        if name in self._headers:
            shown = name[:32].decode("ascii", "replace")
            raise InvalidRequest(f"{self._place()} has the header {shown} twice")
        self._headers[name] = self._value

    def add_data(self, raw: bytes, begin: int, end: int) -> None:
        self._data += raw[begin:end]  # once per part, so nothing is copied twice

    def end_part(self) -> None:
        kind, options = _read_options(self._headers.get(b"content-disposition", b"-"))
        if kind != b"form-data" or not options.get(b"name"):
            problem = 'no header content-disposition: form-data; name="..."'
            raise InvalidRequest(f"{self._place()} has {problem}")
        name = _read_name(options[b"name"], self._place())
        self._check_type(name)
        self._check_encoding(name)
        # RFC 7578, 4.2 forbids filename*; some send it, and no file name is ever read
        is_file = b"filename" in options or b"filename*" in options
        self.parts.append(Part(name, self._data, is_file))

    def end(self) -> None:
        self.is_complete = True

    def _check_type(self, name: str) -> None:
        value = self._headers.get(b"content-type", b"").strip()
        if not value:
            return
        kind, options = _read_options(value)
        if kind.startswith(b"multipart/"):
            raise _refusal(name, "is a form inside the form; send each file as a field of its own")
        charset = options.get(b"charset", b"").lower()
        if kind.startswith(b"text/") and charset not in _UTF_8:
            shown = ascii(charset[:32].decode("latin-1"))
            raise _refusal(name, f"has the charset {shown}; send utf-8")

    def _check_encoding(self, name: str) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"7bit").strip().lower()
        if encoding not in _IDENTITY:
            shown = ascii(encoding[:32].decode("latin-1"))
            reason = "which forms have not (RFC 7578, 4.7); send the bytes as they are"
            raise _refusal(name, f"has the content-transfer-encoding {shown}, {reason}")

    def _place(self) -> str:
        return f"part {len(self.parts)} of the form"


def _read_name(raw: bytes, place: str) -> str:
    if len(raw) > MAX_NAME_BYTES:
        raise TooLarge(f"{place} has a name of {len(raw)} bytes; at most {MAX_NAME_BYTES} are read")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the name of {place} is not UTF-8") from error


def _refusal(name: str, problem: str) -> InvalidRequest:
    shown = name[:64]
    return InvalidRequest(f"{ascii(shown)[1:-1]} {problem}", param=shown)
