"""The work of every reader is linear in its input, which is counted and not timed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from benchmarks.serving.hostile_cases import field, infer, varint
from predictors.chat.tools.tag_reader import TagReader
from predictors.errors import ServingError
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.http.inflating import Inflation
from predictors.protocol.http.parsing import BadHead, ChunkedBody, HeadParser, SizedBody
from predictors.protocol.images.decode import decode_pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.images.urls import read_base64, read_data_url
from predictors.protocol.openai.chat_body import decode_chat_body
from predictors.protocol.openai.edits_body import decode_edits_body
from predictors.protocol.v2.wire_json import HEADER, decode_json_request
from predictors.protocol.v2.wire_proto import decode_proto_request, model_of
from predictors.settings import ImageLimits
from tests.fuzz import seeds
from tests.fuzz.seeds import picture
from tests.fuzz.targets import FORM_TYPE
from tests.fuzz.work import counted_buffer, steps
from tests.http.pictures import chunk

SIZE = 300  # of the smaller input, in items
LIMITS = ImageLimits()
X = b" HTTP/1.1\r\nHost: x\r\n"


def is_linear(work: Callable[[int], int], size: int = SIZE) -> None:
    """Four times the input: linear work is four times as much, quadratic work sixteen times."""
    small, large = work(size), work(4 * size)
    assert small > 0
    assert large <= 6 * small + 200, (small, large)


# -- connections ----------------------------------------------------------------------------------
def head_work(raw: bytes, piece: int) -> int:
    with counted_buffer() as buffer:
        parser = HeadParser()
        try:
            for at in range(0, len(raw), piece):
                buffer += raw[at : at + piece]
                parser.next_head(buffer)
        except BadHead:
            pass
        return buffer.touched


def body_work(body: SizedBody | ChunkedBody, raw: bytes, piece: int) -> int:
    with counted_buffer() as buffer:
        if isinstance(body, ChunkedBody):
            body.__init__()  # type: ignore[misc] # with the counting patterns
        for at in range(0, len(raw), piece):
            buffer += raw[at : at + piece]
            try:
                while body.decode(buffer)[1]:
                    pass
            except ServingError:
                break
        return buffer.touched


HEADS: dict[str, Callable[[int], bytes]] = {
    "a long value": lambda n: b"GET /" + X + b"A: " + b"b" * 8 * n + b"\r\n\r\n",
    "a long target": lambda n: b"GET /" + b"a" * 8 * n + X + b"\r\n",
    "a line without an end": lambda n: b"GET /" + b"a" * 8 * n,
    "many lines": lambda n: b"GET /" + X + b"A: b\r\n" * n + b"\r\n",
    "many lines, and the last is wrong": lambda n: b"GET /" + X + b"A: b\r\n" * n + b"A\r\n\r\n",
    "a long method": lambda n: b"G" * 8 * n + b" /" + X + b"\r\n",
    "many small heads": lambda n: (b"GET /" + X + b"\r\n") * (n // 20),
    "spaces": lambda n: b"GET /" + X + b"A:" + b" " * 8 * n + b"b\r\n\r\n",
}


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", HEADS)
def test_heads(form: str, piece: int) -> None:
    is_linear(lambda n: head_work(HEADS[form](n), piece))


BODIES: dict[str, Callable[[int], bytes]] = {
    "one-byte chunks": lambda n: b"1\r\na\r\n" * n + b"0\r\n\r\n",
    "one large chunk": lambda n: b"%x\r\n%b\r\n0\r\n\r\n" % (9 * n, b"a" * 9 * n),
    "chunks with extensions": lambda n: b'64;a="b";c\r\n%b\r\n' % (b"a" * 100) * (n // 40),
    "chunks with quoted backslashes": lambda n: (
        (b'64;a="' + b"\\\\" * 30 + b'"\r\n' + b"a" * 100 + b"\r\n") * (n // 40)
    ),
    "trailers": lambda n: b"0\r\n" + b"A: b\r\n" * n + b"\r\n",
}


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("form", BODIES)
def test_chunked_bodies(form: str, piece: int) -> None:
    is_linear(lambda n: body_work(ChunkedBody(), BODIES[form](n), piece))


@pytest.mark.parametrize("piece", [7, 4096])
def test_sized_bodies(piece: int) -> None:
    is_linear(lambda n: body_work(SizedBody(9 * n), b"a" * 9 * n, piece))


# -- JSON, V2 and OpenAI --------------------------------------------------------------------------
JSON: dict[str, Callable[[int], bytes]] = {
    "numbers": lambda n: b"[" + b"1," * n + b"1]",
    "objects": lambda n: b"[" + b"{}," * n + b"{}]",
    "keys": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b"}",
    "brackets": lambda n: b"[" * n + b"]" * n,
    "backslashes": lambda n: b'["' + b"\\" * 2 * n + b'"]',
    "an open string": lambda n: b'["' + b"\\\\" * n,
    "quotes": lambda n: b'["' + b'\\"' * n + b'"]',
    "files": lambda n: b"[" + b'";base64,AA",' * n + b"1]",
    "files with escapes": lambda n: b"[" + b'";base64,\\n",' * n + b"1]",
    "digits": lambda n: b"[" + b"1" * n + b"]",
    "surrogates": lambda n: b'["' + b"\\ud83d\\ude00" * n + b'"]',
    "spaces": lambda n: b" " * 9 * n + b"[]",
}


@pytest.mark.parametrize("form", JSON)
def test_json(form: str) -> None:
    is_linear(lambda n: steps(lambda: parse_json(JSON[form](n))), 1200)


def v2_binary(n: int) -> int:
    raw = (struct.pack("<I", 1) + b"a") * n
    head = b'{"inputs":[{"name":"a","datatype":"BYTES","shape":[%d],' % n
    head += b'"parameters":{"binary_data_size":%d}}]}' % len(raw)
    return steps(lambda: decode_json_request(head + raw, {HEADER: str(len(head))}, "m"))


def v2_nested(n: int) -> int:
    data = b",".join([b"[[1]]"] * n)
    body = b'{"inputs":[{"name":"a","datatype":"FP32","shape":[%d,1,1],"data":[%b]}]}' % (n, data)
    return steps(lambda: decode_json_request(body, {}, "m"))


def v2_parameters(n: int) -> int:
    parameters = b",".join(b'"%d":1' % i for i in range(n))
    body = b'{"parameters":{%b},"inputs":[]}' % parameters
    return steps(lambda: decode_json_request(body, {}, "m"))


def chat_messages(n: int) -> int:
    messages = b",".join([b'{"role":"user","content":[{"type":"text","text":"a"}]}'] * (n // 8))
    body = b'{"model":"m","messages":[%b]}' % messages
    return steps(lambda: decode_chat_body(body))


def chat_tools(n: int) -> int:
    tool = b'{"type":"function","function":{"name":"f%d","parameters":{"properties":{%b}}}}'
    schema = b",".join(b'"p%d":{"type":"string"}' % i for i in range(8))
    tools = b",".join(tool % (i, schema) for i in range(n // 16))
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[%b]}' % tools
    return steps(lambda: decode_chat_body(body))


def chat_calls(n: int) -> int:
    call = b'{"id":"%d","type":"function","function":{"name":"f","arguments":"{}"}}'
    answer = b'{"role":"tool","tool_call_id":"%d","content":"3"}'
    calling = b'{"role":"assistant","tool_calls":[%b]}'
    turns = b",".join(calling % (call % i) + b"," + answer % i for i in range(n // 8))
    body = b'{"model":"m","messages":[%b]}' % turns
    return steps(lambda: decode_chat_body(body))


ANSWERS = {
    "openings": "<tool_call>", "halves": "<tool_call", "spaces": " ", "closings": "</tool_call>",
    "calls": '<tool_call>{"name":"f","arguments":{"a":"b"}}</tool_call>\n',
    "no calls": '<tool_call>{"name":"g","arguments":{}}</tool_call>\n',
    "escapes": "{\\\"",
}  # fmt: skip


@pytest.mark.parametrize("before", ["", "<tool_call>", '<tool_call>{"name":"f","arguments":{"'])
@pytest.mark.parametrize("repeated", ANSWERS.values(), ids=ANSWERS)
def test_answers_with_calls(before: str, repeated: str) -> None:
    def work(n: int) -> int:
        reader = TagReader(("f",))
        pieces = (before + repeated * (n // 16), *repeated * (n // 16))
        return steps(lambda: [reader.feed(piece) for piece in pieces] and reader.end())

    is_linear(work)


def form_fields(n: int) -> int:
    fields = [(f"user[{i}]", b"a") for i in range(n // 8)]
    return steps(lambda: decode_edits_body(seeds.form(*fields), FORM_TYPE))


def form_lists(n: int) -> int:
    fields = [("loras[][name]", b"a")] * (n // 16) + [("loras[][scale]", b"1")] * (n // 16)
    return steps(lambda: decode_edits_body(seeds.form(*fields), FORM_TYPE))


def form_data(n: int) -> int:
    raw = seeds.form(("image", b"\r\n--" * n), ("mask", b"\r\n--x\t\n" * (n // 8)))
    return steps(lambda: decode_edits_body(raw, FORM_TYPE))


@pytest.mark.parametrize(
    "work",
    [
        v2_binary,
        v2_nested,
        v2_parameters,
        chat_messages,
        chat_tools,
        chat_calls,
        form_fields,
        form_lists,
        form_data,
    ],
)
def test_bodies(work: Callable[[int], int]) -> None:
    is_linear(work)


TEXT = field(1, b"a") + field(2, b"BYTES")
PROTO: dict[str, Callable[[int], bytes]] = {
    "unknown fields": lambda n: infer(TEXT + b"\x18\x01") + b"\x78\x01" * n,
    "rows": lambda n: infer(TEXT + b"\x18" + varint(n) + field(5, field(8, b"a") * n)),
    "packed": lambda n: infer(
        field(1, b"a") + field(2, b"INT32") + b"\x18" + varint(n) + field(5, field(2, b"\1" * n))
    ),
    "contents merged": lambda n: infer(
        TEXT + b"\x18" + varint(n) + field(5, field(8, b"a")) * n
    ),
    "long varints": lambda n: b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01" * n,
    "one parameter again and again": lambda n: infer(TEXT)
    + field(4, field(1, b"p") + field(2, b"\x10\x05")) * n,
    "names": lambda n: field(1, b"m") * n + infer(TEXT),
    "nested": lambda n: field(5, field(5, field(5, b"\x08\x01" * n))),
}  # fmt: skip


@pytest.mark.parametrize("form", PROTO)
def test_protobuf(form: str) -> None:
    is_linear(lambda n: steps(lambda: decode_proto_request(PROTO[form](n))))
    is_linear(lambda n: steps(lambda: model_of(PROTO[form](n))))


# -- pictures, data URLs, compressed bodies -------------------------------------------------------
PNG, JPEG, GIF = picture("PNG"), picture("JPEG"), picture("GIF", "P")
DEFLATED = zlib.compress(b"b")
FRAME = GIF.index(b",", 13 + 3 * 256 if GIF[10] & 7 == 7 else 13)


def tiff_pages(n: int) -> bytes:
    """Pages without a tag that name each other in a row."""
    pages = [struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(n)]
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(pages)


FILES: dict[str, Callable[[int], bytes]] = {
    "PNG of chunks": lambda n: PNG[:33] + chunk(b"teSt", b"") * n + PNG[33:],
    "PNG of texts": lambda n: PNG[:33] + chunk(b"zTXt", b"a\0\0" + DEFLATED) * n + PNG[33:],
    "PNG of data": lambda n: PNG[:33] + chunk(b"IDAT", b"") * n + PNG[33:],
    "JPEG of segments": lambda n: JPEG[:2] + b"\xff\xe3\0\2" * n + JPEG[2:],
    "JPEG of fill bytes": lambda n: JPEG[:2] + b"\xff" * n + JPEG[2:],
    "JPEG of comments": lambda n: JPEG[:2] + b"\xff\xfe\0\x04ab" * n + JPEG[2:],
    "JPEG of markers": lambda n: JPEG[:-2] + b"\xff\xc4\0\2" * n + JPEG[-2:],
    "GIF of comments": lambda n: GIF[:FRAME] + b"!\xfe\1a\0" * n + GIF[FRAME:],
    "GIF of padding": lambda n: GIF[:FRAME] + b"\0" * n + GIF[FRAME:],
    "GIF of blocks": lambda n: GIF[:FRAME] + b"!\xfe" + b"\1a" * n + b"\0" + GIF[FRAME:],
    "TIFF of pages": tiff_pages,
    "AVIF of boxes": lambda n: b"\0\0\0\x0cftypavif" + b"\0\0\0\x08free" * n,
    "text": lambda n: b"a" * 9 * n,
}  # fmt: skip


@pytest.mark.parametrize("form", FILES)
def test_pictures(form: str) -> None:
    def decode(raw: bytes) -> None:
        decode_pixels(raw, LIMITS).memory.close()

    is_linear(lambda n: steps(lambda: decode(FILES[form](n))))
    is_linear(lambda n: steps(lambda: decoding_bytes(FILES[form](n), LIMITS.max_pixels)))


URLS: dict[str, Callable[[int], bytes]] = {
    "escapes": lambda n: b"data:image/png;base64," + b"%2B" * n,
    "other escapes": lambda n: b"data:image/png," + b"%41" * n,
    "commas": lambda n: b"data:" + b"," * n,
    "quotes": lambda n: b'data:a="' + b'"' * n,
    "semicolons": lambda n: b"data:" + b";" * n + b",a",
    "spaces": lambda n: b" " * n + b"data:;base64," + b" " * n,
    "signs": lambda n: b"data:;base64," + b"-_" * n,
}


@pytest.mark.parametrize("form", URLS)
def test_data_urls(form: str) -> None:
    is_linear(lambda n: steps(lambda: read_base64(URLS[form](n), param="image")))
    is_linear(lambda n: steps(lambda: read_data_url(URLS[form](n).decode())))


def inflating(raw: bytes, codings: tuple[str, ...]) -> None:
    inflation = Inflation(raw, codings, 1 << 24)
    while not inflation.is_done:
        inflation.advance(1)


@pytest.mark.parametrize("codings", [("gzip",), ("gzip", "gzip"), ("deflate",)])
def test_compressed_bodies(codings: tuple[str, ...]) -> None:
    def encoded(n: int) -> bytes:
        raw = bytes(1000 * n)
        for coding in codings:
            raw = zlib.compress(raw, wbits=31 if coding == "gzip" else 15)
        return raw

    is_linear(lambda n: steps(lambda: inflating(encoded(n), codings)))


def test_members_of_gzip() -> None:
    member = zlib.compress(b"a", wbits=31)
    is_linear(lambda n: steps(lambda: inflating(member * n, ("gzip",))))


# -- the counts themselves ------------------------------------------------------------------------
def test_a_quadratic_reader_is_told_from_a_linear_one() -> None:
    def squared(n: int) -> int:
        with counted_buffer() as buffer:
            for _ in range(n):
                buffer += b"a"
                buffer.find(b"\n")
            return buffer.touched

    with pytest.raises(AssertionError):
        is_linear(squared)
    with pytest.raises(AssertionError):
        is_linear(lambda n: steps(lambda: [parse_json(b"[]") for _ in range(n * n // 1000)]), 100)
