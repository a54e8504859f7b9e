"""Hostile connections to gRPC's port: floods of frames, odd metadata and messages that inflate. The
calls of others are answered meanwhile.
"""

from __future__ import annotations

import gzip
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from predictors.protocol.kserve_sdk import pb
from tests.http.echo import Running, echo, serving
from tests.http.http2 import (
    CONTINUATION,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    PING,
    Connection,
    connect,
)
from tests.http.log_lines import logged

SERVICE = "/inference.GRPCInferenceService/"
LIVE, INFER = SERVICE + "ServerLive", SERVICE + "ModelInfer"
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


ATTACKS: dict[str, Callable[[Connection], None]] = {
    "calls that are reset at once": reset_at_once,
    "a head without end": send_head_without_end,
    "empty parts of a head": send_empty_parts_of_a_head,
    "pings without end": ping_without_end,
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
