"""Ends a gRPC server's TCP connections. gRPC's Python package can neither end one of them nor all
of them without cancelling calls, so their sockets are found among the descriptors of the process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from predictors.protocol.addresses import Address, parse_address, peer_address

DESCRIPTORS = Path("/dev/fd")  # of Linux and macOS alike

SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # a filter of one instruction: keep 0 bytes

Peer = tuple[Address | None, int]
"""Address and port of a connection's other end."""


def read_peer(name: str) -> Peer:
    """The peer by gRPC's name of it (`peer_address`)."""
    port = unquote(name).rpartition(":")[2]
    return parse_address(peer_address(name)), int(port) if port.isdecimal() else 0


def refuse_connections(port: int) -> None:
    """Drop each attempt to connect to `port` from now on, where the system can (Linux). TCP repeats
    it after a second, and finds the port closed. gRPC has no way to accept no more, and logs an
    error if its listening socket is shut down. Any thread."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(DROP_ALL)
    given = struct.pack("HP", 1, ctypes.addressof(program))  # sock_fprog: length, address
    for each in _sockets(port):
        with suppress(OSError):
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, given)


def connected_peers(port: int) -> set[Peer]:
    """Of the connections that were accepted at `port` and are open. Any thread, as below: a few
    microseconds for each descriptor of the process."""
    found = set()
    for each in _sockets(port):
        with suppress(OSError):  # it listens, or has ended meanwhile
            host, peer_port, *_ = each.getpeername()
            found.add((parse_address(host), peer_port))
    return found


def end_connections(port: int, is_meant: Callable[[Peer], bool] = lambda peer: True) -> int:
    """Shut down the connections that were accepted at `port` and whose peer is meant. Returns how
    many. What was written before is still delivered."""
    count = 0
    for each in _sockets(port):
        with suppress(OSError):  # it listens, or has ended meanwhile
            host, peer_port, *_ = each.getpeername()
            if is_meant((parse_address(host), peer_port)):
                each.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def _sockets(port: int) -> Iterator[socket.socket]:
    """Duplicates of the process's sockets that have this port on their own side."""
    for number in os.listdir(DESCRIPTORS):
        with suppress(OSError):  # closed since it was listed
            if not stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                continue
            # a duplicate: the number may be another file's before it is used
            with socket.socket(fileno=os.dup(int(number))) as found:
                is_ip = found.family in (socket.AF_INET, socket.AF_INET6)
                if is_ip and found.getsockname()[1] == port:
                    yield found
