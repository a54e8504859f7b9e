"""A minimal HTTP/2 client, frame by frame. gRPC's own client decides itself when it pings."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from tests.http.echo import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
WINDOW_UPDATE, CONTINUATION = 8, 9
ACK = END_STREAM = 1
END_HEADERS = 4
MAX_FRAME = 16_384
CANCEL, ENHANCE_YOUR_CALM = 8, 11
MAX_CONCURRENT_STREAMS = 3
ODD_PATHS = {
    "no UTF-8": b"/\xff\xff",
    "half a character": b"/inference.GRPCInferenceService/ServerLive\xc3",
    "a surrogate": b"/\xed\xa0\x80/x",
    "a slash alone": b"/",
    "no slash": b"inference.GRPCInferenceService",
}
"""Paths that name no method."""


@dataclass(frozen=True)
class Frame:
    """One HTTP/2 frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """The client's end of a connection. Acknowledges settings and pings, ignores other frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self.settings: dict[int, int] = {}
        self.answers_pings = True
        self.is_sent_away = False
        self.trailers = b""
        sock.sendall(PREFACE)
        self.send(SETTINGS)
        while not self.settings:
            self.receive()

    def close(self) -> None:
        self._file.close()

    def send(self, kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> None:
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self._sock.sendall(head + payload)

    def receive(self) -> Frame:
        """Read the next frame."""
        head = self._file.read(9)
        assert len(head) == 9, "the server closed the connection without a word"
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        frame = Frame(kind, flags, stream, self._file.read(size))
        if kind == SETTINGS and not flags & ACK:
            pairs = struct.iter_unpack(">HI", frame.payload)
            self.settings |= dict(pairs)
            self.send(SETTINGS, flags=ACK)
        elif kind == GOAWAY:
            self.is_sent_away = True
        elif kind == PING and not flags & ACK and self.answers_pings:
            self.send(PING, frame.payload, ACK)
        return frame

    def ping(self) -> bool:
        """Send a ping. Returns False if the server ends the connection instead of answering."""
        with suppress(ConnectionError):  # a GOAWAY may still be readable
            self.send(PING, b"12345678")
        while True:
            frame = self.receive()
            if frame.kind == PING and frame.flags & ACK:
                return True
            if frame.kind == GOAWAY:
                assert struct.unpack(">I", frame.payload[4:8])[0] == ENHANCE_YOUR_CALM
                assert frame.payload[8:] == b"too_many_pings"
                return False

    def call(
        self, path: str | bytes, message: bytes, more: Mapping[str, str | bytes] | None = None
    ) -> None:
        """Start a gRPC call on stream 1, with `more` headers."""
        self.open(path, 1, more)
        self.part(struct.pack(">BI", 0, len(message)) + message, 1, END_STREAM)

    def open(
        self, path: str | bytes, stream: int, more: Mapping[str, str | bytes] | None = None
    ) -> None:
        """Send the head of a gRPC call."""
        headers = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc", **(more or {}),
        }  # fmt: skip
        block = b"".join(_literal(name) + _string(text) for name, text in headers.items())
        first, rest = block[:MAX_FRAME], block[MAX_FRAME:]
        self.send(HEADERS, first, 0 if rest else END_HEADERS, stream)
        while rest:
            part, rest = rest[:MAX_FRAME], rest[MAX_FRAME:]
            self.send(CONTINUATION, part, 0 if rest else END_HEADERS, stream)

    def part(self, raw: bytes, stream: int, flags: int = 0) -> None:
        """Send a part of a call's messages, their five bytes of length included."""
        self.send(DATA, raw, flags, stream)

    def allow(self, num_bytes: int, stream: int = 0) -> None:
        """Let the server send more on a stream, or on all of them together (0). It may send 65,535
        bytes on each, and on all together, without that."""
        self.send(WINDOW_UPDATE, struct.pack(">I", num_bytes), stream=stream)

    def is_ended(self) -> bool:
        """Read on until the server ends the connection."""
        with suppress(ConnectionError):
            while self._file.read(9):
                pass
        return True

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self.send(RST_STREAM, struct.pack(">I", CANCEL), stream=stream)

    def answer(self, stream: int = 1) -> bytes:
        """The call's message, read until its trailers, which are kept in `trailers` as they
        came."""
        found = b""
        while True:
            frame = self.receive()
            if frame.stream != stream:
                continue
            if frame.kind == HEADERS:
                self.trailers = frame.payload
            if frame.kind == DATA:
                found += frame.payload
            if frame.flags & END_STREAM and frame.kind in {DATA, HEADERS}:
                return found[5:]


@contextmanager
def connect(port: int, own_address: str = "127.0.0.1") -> Iterator[Connection]:
    """Connect and exchange settings."""
    peer = ("127.0.0.1", port)
    with (
        socket.create_connection(peer, PATIENCE_S, (own_address, 0)) as sock,
        closing(Connection(sock)) as connection,
    ):
        yield connection


def _literal(name: str) -> bytes:
    return b"\x00" + _string(name)


def _string(text: str | bytes) -> bytes:
    raw = text.encode("ascii") if isinstance(text, str) else text
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    left, size = len(raw) - 127, bytearray([127])  # an integer of HPACK (RFC 7541, 5.1)
    while left > 127:
        size.append(left & 127 | 128)
        left >>= 7
    return bytes([*size, left]) + raw
