"""The sockets of a port, found among the descriptors of the process."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from predictors.protocol.grpc.connections import (
    connected_peers,
    end_connections,
    read_peer,
    refuse_connections,
)
from tests.http.echo import PATIENCE_S


@contextmanager
def connected(host: str, count: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """A port and the callers' ends of so many connections to it, whose other ends are open."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((host, 0), family=family))
        port = listening.getsockname()[1]
        ends = []
        for _ in range(count):
            ends.append(stack.enter_context(socket.create_connection((host, port), PATIENCE_S)))
            stack.enter_context(listening.accept()[0])
        yield port, ends


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:10.0.0.1:5000", (ipaddress.ip_address("10.0.0.1"), 5000)),
        ("ipv6:%5B::1%5D:5000", (ipaddress.ip_address("::1"), 5000)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", (ipaddress.ip_address("10.0.0.1"), 5000)),
        ("unix:", (None, 0)),
    ],
)
def test_a_peer_is_read_from_grpcs_name_of_it(name: str, peer: object) -> None:
    assert read_peer(name) == peer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_connections_that_are_meant_are_ended_and_others_are_not(host: str) -> None:
    with connected(host, 3) as (port, ends), connected(host, 1) as (_, others):
        peers = [(ipaddress.ip_address(host), each.getsockname()[1]) for each in ends]
        assert connected_peers(port) == set(peers)
        assert end_connections(port, lambda peer: peer == peers[1]) == 1
        assert ends[1].recv(1) == b""
        for each in (ends[0], ends[2], *others):
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(1)
        end_connections(port)
        for each in (ends[0], ends[2]):
            each.settimeout(PATIENCE_S)
            assert each.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
def test_new_connections_are_not_made_any_more_and_others_stay() -> None:
    with connected("127.0.0.1", 1) as (port, (end,)):
        refuse_connections(port)
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), 0.1)
        assert connected_peers(port)
        end.sendall(b"still read")
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
