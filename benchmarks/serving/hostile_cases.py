"""The most expensive known requests of each kind that one caller can send: legal ones of the
largest size, and those that once stopped the server. Bodies are made on demand.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

MIB = 2**20
LIMIT = 64 * MIB
MESSAGE = 32 * MIB - 4096  # the largest over gRPC
INFER = "/v2/models/{chat}/infer"
CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"
GRPC = "/inference.GRPCInferenceService/ModelInfer"
ELEMENTS = 2**16


@dataclass(frozen=True)
class Case:
    """`body` goes to `path` of a server whose chat model is called `chat`; over gRPC where `path`
    is a method, gzipped there if `is_gzipped`."""

    name: str
    path: str
    make: Callable[[], bytes]
    is_gzipped: bool = False
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)

    @property
    def is_grpc(self) -> bool:
        return self.path == GRPC

    def body(self) -> bytes:
        return _made(self)


@cache
def _made(case: Case) -> bytes:
    return case.make()


def v2(data: bytes, *, datatype: str = "BYTES", count: int = 1) -> bytes:
    """A V2 request whose one input has `data` as the text of its JSON list."""
    head = b'{"inputs":[{"name":"prompt","datatype":"%b","shape":[%d],"data":['
    return head % (datatype.encode(), count) + data + b"]}]}"


def chat(content: bytes) -> bytes:
    """A chat of one turn with `content` as JSON text."""
    return b'{"model":"qwen-vl","max_tokens":1,"messages":[{"role":"user","content":%b}]}' % content


def filled(head: bytes, piece: bytes, tail: bytes, size: int = LIMIT - 4096) -> bytes:
    """`head`, as many pieces as fit into `size`, `tail`."""
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


def pictures(raw: bytes, count: int) -> bytes:
    """A chat about `count` times the same file."""
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    return chat(json.dumps([part] * count).encode())


def flat_png(side: int, *, alpha: bool = False) -> bytes:
    """A picture of one colour: few bytes, many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 6 if alpha else 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + side * (4 if alpha else 3))
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def encoded(kind: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    """A picture of one colour written by Pillow."""
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size, (200, 30, 30, 99)[: len(mode)]).save(file, kind, **options)
    return file.getvalue()


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


NAME = field(1, b"qwen-vl")
PROMPT = field(1, b"prompt") + field(2, b"BYTES")


def infer(tensor: bytes, raw: bytes = b"") -> bytes:
    return NAME + field(5, tensor) + (field(7, raw) if raw else b"")


def cases() -> Iterator[Case]:
    yield from _json_cases()
    yield from _picture_cases()
    yield from _grpc_cases()


def _json_cases() -> Iterator[Case]:
    for name, head, piece, tail in (
        ("string without an end", b"[" * 33, b'"\\', b""),
        ("escapes", b'["', b"\\n", b'"]'),
        ("escaped characters", b'["', b"\\u0041", b'"]'),
        ("empty strings", b"[", b'"",', b'""]'),
        ("brackets", b"", b"[]", b""),
        ("spaces", b"[" * 33, b" ", b"]" * 33),
        ("digits", b"[", b"1", b"]"),
        ("characters of three bytes", b'["', "€".encode(), b'"]'),
    ):
        yield Case(f"JSON: {name}", INFER, lambda h=head, p=piece, t=tail: filled(h, p, t))
    for name, piece in (("numbers", b"1,"), ("escaped characters", b"\\u0041,")):
        quote = b'"' if name != "numbers" else b""
        yield Case(f"JSON: a MiB of {name}", INFER, lambda p=piece, q=quote: filled(
            b"[" + q, p, b"1" + q + b"]", MIB))  # fmt: skip
    ones = b",".join([b"1.5"] * ELEMENTS)
    yield Case("V2: all elements FP16", INFER, lambda: v2(ones, datatype="FP16", count=ELEMENTS))
    texts = b",".join([b'"' + b"x" * 900 + b'"'] * ELEMENTS)
    yield Case("V2: all elements, 60 MB of text", INFER, lambda: v2(texts, count=ELEMENTS))
    yield Case("V2: one text of 64 MB", INFER, lambda: filled(v2(b'"')[:-4], b"x", b'"]}]}'))
    yield Case(
        "chat: two million characters", CHAT, lambda: chat(b'"' + b"word, " * 349_000 + b'"')
    )
    yield Case("chat: 64 MB of text", CHAT, lambda: filled(chat(b'"')[:-3], b"word ", b'"}]}'))
    yield Case("images: 64 MB of prompt", IMAGES, lambda: filled(
        b'{"model":"flux","prompt":"', b"a red circle ", b'"}'))  # fmt: skip
    parts = b",".join([b'{"type":"text","text":"x"}'] * 1024)
    message = b'{"role":"user","content":[%b]}' % parts
    yield Case("chat: 30 messages of 1,024 parts", CHAT, lambda: (
        b'{"model":"qwen-vl","max_tokens":1,"messages":[%b]}' % b",".join([message] * 30)
    ))  # fmt: skip


def _picture_cases() -> Iterator[Case]:
    side = 7071  # 50 megapixels
    yield Case("16 pictures of 50 megapixels, PNG", CHAT, lambda: pictures(flat_png(side), 16))
    yield Case("16 pictures of 50 megapixels, PNG with alpha", CHAT, lambda: pictures(
        flat_png(side, alpha=True), 16))  # fmt: skip
    yield Case("16 pictures of 50 megapixels, progressive JPEG", CHAT, lambda: pictures(
        encoded("JPEG", (side, side), progressive=True, quality=5), 16))  # fmt: skip
    yield Case("16 pictures of 36 megapixels, WebP with alpha", CHAT, lambda: pictures(
        encoded("WEBP", (6000, 6000), "RGBA", quality=1), 16))  # fmt: skip
    yield Case("a picture of 50 megapixels, WebP with alpha", CHAT, lambda: pictures(
        encoded("WEBP", (side, side), "RGBA", quality=1), 1))  # fmt: skip
    yield Case("three files of 15 MB that are no pictures", CHAT, lambda: pictures(
        b"\xff\xd8" + b"\xff" * 15_000_000, 3))  # fmt: skip
    yield Case("base64 of nothing but spaces", CHAT, lambda: filled(
        chat(b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,')[:-3],
        b"A ", b'"}}]}]}'))  # fmt: skip


def _grpc_cases() -> Iterator[Case]:
    yield Case(
        "gRPC: empty inputs, gzip", GRPC, lambda: filled(NAME, b"\x2a\x00", b"", MESSAGE), True
    )
    yield Case("gRPC: unknown fields, gzip", GRPC, lambda: filled(NAME, b"\x98\x06", b"", MESSAGE),
               True)  # fmt: skip
    yield Case("gRPC: empty elements", GRPC, lambda: infer(
        PROMPT + field(5, b"\x42\x00" * (MESSAGE // 2 - 64))))  # fmt: skip
    yield Case("gRPC: packed numbers", GRPC, lambda: infer(
        PROMPT + field(5, field(3, b"\x01" * (MESSAGE - 64)))))  # fmt: skip
    yield Case("gRPC: parameters", GRPC, lambda: filled(NAME, b"\x22\x00", b"", MESSAGE))
    yield Case("gRPC: 32 MB of text", GRPC, lambda: infer(
        PROMPT + field(3, b"\x01"),
        struct.pack("<I", MESSAGE - 64) + b"x" * (MESSAGE - 64)))  # fmt: skip
