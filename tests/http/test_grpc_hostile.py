"""Hostile connections to gRPC's port: floods of frames, odd metadata and messages that inflate. The
calls of others are answered meanwhile.
"""

from __future__ import annotations

import gzip
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from predictors.protocol.kserve_sdk import pb
from tests.http.echo import PATIENCE_S, Running, echo, serving
from tests.http.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    connect,
)
from tests.http.log_lines import logged

SERVICE = "/inference.GRPCInferenceService/"
LIVE, INFER = SERVICE + "ServerLive", SERVICE + "ModelInfer"
STREAM = SERVICE + "ModelStreamInfer"
INITIAL_WINDOW = 4  # number of the setting
NAMED = b"\x40\x03x-b\x7f\xbd\x1d" + b"y" * 3_900  # in HPACK's table from then on, at LAST_NAMED
LAST_NAMED = b"\xbe"
EMPTY = struct.pack(">BI", 0, 0)
BOMB = gzip.compress(bytes(64 * 2**20))  # 64 KiB


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server that takes messages of 1 MiB."""
    with serving(echo()) as found:
        yield found


def is_live(running: Running) -> bool:
    with connect(running.server.grpc_port) as other:
        other.call(LIVE, b"")
        return bool(pb.ServerLiveResponse.FromString(other.answer()).live)


def reset_at_once(connection: Connection) -> None:
    """CVE-2023-44487: calls that are cancelled before their message."""
    for number in range(1, 2000, 2):
        connection.open(INFER, number)
        connection.reset(number)


def send_head_without_end(connection: Connection) -> None:
    """CVE-2024-27316: a head of 4 MiB."""
    connection.send(HEADERS, b"", stream=1)
    for _ in range(256):
        connection.send(CONTINUATION, bytes(MAX_FRAME), stream=1)


def send_empty_parts_of_a_head(connection: Connection) -> None:
    connection.send(HEADERS, b"", stream=1)
    for _ in range(20_000):
        connection.send(CONTINUATION, b"", stream=1)


def ping_without_end(connection: Connection) -> None:
    for _ in range(10_000):
        connection.send(PING, b"12345678")


def settings_without_end(connection: Connection) -> None:
    for _ in range(10_000):
        connection.send(SETTINGS, struct.pack(">HI", INITIAL_WINDOW, 65_535))


def refer_to_one_large_value(connection: Connection) -> None:
    """Heads of 4 KB that stand for 12,000 times a value of 3,900 bytes."""
    connection.send(HEADERS, NAMED + LAST_NAMED * 12_000, END_HEADERS, 1)
    for number in range(3, 400, 2):
        connection.send(HEADERS, LAST_NAMED * 12_000, END_HEADERS, number)


def window_updates_of_0(connection: Connection) -> None:
    """CVE-2025-8671: calls that the server itself resets."""
    for number in range(1, 2000, 2):
        connection.open(INFER, number)
        connection.allow(0, number)


def empty_parts_of_a_message(connection: Connection) -> None:
    connection.open(STREAM, 1)
    for _ in range(20_000):
        connection.part(b"", 1)


def read_nothing(connection: Connection) -> None:
    """250 calls whose answers may not be sent."""
    connection.send(SETTINGS, struct.pack(">HI", INITIAL_WINDOW, 0))
    for number in range(1, 500, 2):
        connection.open(LIVE, number)
        connection.part(EMPTY, number, END_STREAM)


def trailers_of(connection: Connection) -> bytes:
    connection.answer()
    return connection.trailers


ATTACKS: dict[str, Callable[[Connection], None]] = {
    "calls that are reset at once": reset_at_once,
    "a head without end": send_head_without_end,
    "empty parts of a head": send_empty_parts_of_a_head,
    "pings without end": ping_without_end,
    "settings without end": settings_without_end,
    "references to one large value": refer_to_one_large_value,
    "window updates of 0": window_updates_of_0,
    "empty parts of a message": empty_parts_of_a_message,
    "answers that may not be sent": read_nothing,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_others_are_answered_and_nothing_is_logged(
    running: Running, attack: Callable[[Connection], None]
) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        with suppress(ConnectionError, AssertionError):  # the server may end the connection
            attack(connection)
        assert is_live(running)
    running.wait_idle()
    assert lines.text == ""


def test_pings_without_end_end_the_connection(running: Running) -> None:
    with connect(running.server.grpc_port) as connection:
        with suppress(ConnectionError):
            ping_without_end(connection)
        with suppress(ConnectionError, AssertionError):
            while connection.receive().kind != GOAWAY:
                pass


METADATA = {
    "one value of 9 KiB": ({"x-name": "x" * 9_000}, b""),
    "one value of 20 KiB": ({"x-name": "x" * 20_000}, b"received metadata size exceeds"),
    "five hundred values": ({f"x-{i}": "y" * 20 for i in range(500)}, b"received metadata size"),
    "one value of 1 MB": ({"x-name": "x" * 10**6}, b"received metadata size exceeds"),
    "binary that is no base64": ({"x-name-bin": "!!"}, b"illegal base64"),
    "another te": ({"te": "gzip"}, b"Error parsing 'te' metadata"),
    "a deadline of 0": ({"grpc-timeout": "0n"}, b""),
    "a deadline below 0": ({"grpc-timeout": "-1S"}, b""),
    "a deadline that is no number": ({"grpc-timeout": "soon"}, b""),
    "a deadline in 317 years": ({"grpc-timeout": "99999999H"}, b""),
}


@pytest.mark.parametrize(("more", "words"), METADATA.values(), ids=METADATA)
def test_odd_metadata_ends_its_own_call_alone(
    running: Running, more: dict[str, str], words: bytes
) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        connection.call(LIVE, b"", more)
        connection.answer()
        assert words in connection.trailers
        assert is_live(running)
    assert lines.text == ""


def test_references_count_by_what_they_stand_for(running: Running) -> None:
    with connect(running.server.grpc_port) as connection:
        connection.send(HEADERS, NAMED + LAST_NAMED * 12_000, END_HEADERS, 1)
        assert b"received metadata size exceeds hard limit" in trailers_of(connection)


LENGTHS = {
    "of the first of three bytes": (1, b"abc", b"the message is not a valid ServerLiveRequest"),
    "of more bytes than there are": (10, b"abc", b"the call has no message"),
    "of 4 GB": (2**32 - 1, b"abc", b"Received message larger than max"),
    "of 1 MiB and a byte": (2**20 + 1, b"abc", b"Received message larger than max"),
}


@pytest.mark.parametrize(("length", "raw", "words"), LENGTHS.values(), ids=LENGTHS)
def test_a_message_whose_length_is_wrong_ends_its_own_call_alone(
    running: Running, length: int, raw: bytes, words: bytes
) -> None:
    with connect(running.server.grpc_port) as connection:
        connection.open(LIVE, 1)
        connection.part(struct.pack(">BI", 0, length) + raw, 1, END_STREAM)
        assert words in trailers_of(connection)
        assert is_live(running)


BROKEN_FRAMES: dict[str, tuple[int, bytes, int]] = {
    "a window update of no size": (WINDOW_UPDATE, b"", 0),
    "a window update of 0": (WINDOW_UPDATE, bytes(4), 0),
    "a reset of three bytes": (RST_STREAM, b"abc", 1),
    "a ping of three bytes": (PING, b"abc", 0),
    "settings of three bytes": (SETTINGS, b"abc", 0),
    "a window of 2 GiB": (SETTINGS, struct.pack(">HI", INITIAL_WINDOW, 2**31), 0),
    "a head of an endless number": (HEADERS, b"\xff" * 8 + b"\x7f", 1),
}


@pytest.mark.parametrize(("kind", "payload", "stream"), BROKEN_FRAMES.values(), ids=BROKEN_FRAMES)
def test_a_broken_frame_ends_its_own_connection_alone(
    running: Running, kind: int, payload: bytes, stream: int
) -> None:
    with connect(running.server.grpc_port) as connection:
        connection.send(kind, payload, END_HEADERS if kind == HEADERS else 0, stream)
        assert connection.is_ended()
    assert is_live(running)


def test_a_frame_of_16_mb_is_not_waited_for(running: Running) -> None:
    with connect(running.server.grpc_port) as connection:
        connection.open(LIVE, 1)
        with suppress(ConnectionError):
            connection.send(DATA, bytes(2**24 - 1), stream=1)
        assert connection.is_ended()
    assert is_live(running)


def test_connections_that_say_nothing_keep_nobody_out(running: Running) -> None:
    peer = ("127.0.0.1", running.server.grpc_port)
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(peer, PATIENCE_S))
        assert is_live(running)


MESSAGES = {
    "64 MiB of zeros in 64 KiB of gzip": (1, BOMB, "gzip"),
    "gzip that is none": (1, b"no gzip at all", "gzip"),
    "a coding that is unknown": (1, b"x", "lzma"),
    "compressed without a coding": (1, b"x", "identity"),
}


@pytest.mark.parametrize(("flag", "raw", "coding"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("path", [LIVE, INFER])
def test_a_message_that_cant_be_inflated_ends_its_own_call_alone(
    running: Running, path: str, flag: int, raw: bytes, coding: str
) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        connection.open(path, 1, {"grpc-encoding": coding})
        whole = struct.pack(">BI", flag, len(raw)) + raw
        while len(whole) > MAX_FRAME:
            connection.part(whole[:MAX_FRAME], 1)
            whole = whole[MAX_FRAME:]
        connection.part(whole, 1, END_STREAM)
        assert connection.answer() == b""
        assert b"grpc-status\x010" not in connection.trailers
        assert is_live(running)
    assert lines.text == ""
