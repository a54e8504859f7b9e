"""Three readers of the same bytes: this server's parser and connection, h11, and nginx as a proxy
whose upstream records what it forwards.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h11

from predictors.cli.child import free_ports
from predictors.protocol.http.parsing import (
    BadChunk,
    BadHead,
    ChunkedBody,
    Head,
    HeadParser,
    SizedBody,
)
from tests.protocol.http.doubles import ConnectionUnderTest, run_loop

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
PATIENCE_S = 60.0


class Message(NamedTuple):
    """A complete message: method, path with query, and decoded body."""

    method: bytes
    target: bytes
    body: bytes


@dataclass
class Reading:
    """The messages that a reader found on a connection, in order, and their end.

    `refused`: the next message is invalid. `closed`: the last message said that none follows.
    `incomplete`: more bytes are needed. `end`: nothing is left.
    """

    messages: list[Message] = field(default_factory=list)
    end: str = "end"


# -- this server ----------------------------------------------------------------------------------
def read_ours(pieces: Sequence[bytes]) -> Reading:
    """Read with `HeadParser`, `SizedBody` and `ChunkedBody`, as `HttpConnection` uses them."""
    found, unread, parser = Reading(), bytearray(), HeadParser()
    head: Head | None = None
    body: SizedBody | ChunkedBody = SizedBody(0)
    data = b""
    try:
        for piece in pieces:
            unread += piece
            while True:
                if head is None:
                    head = parser.next_head(unread) if unread else None
                    if head is None:
                        break
                    body, data = SizedBody(head.content_length), b""
                    if head.is_chunked:
                        body = ChunkedBody()
                more = True
                while more:
                    part, more = body.decode(unread)
                    data += part
                if not body.is_complete:
                    break
                target = head.path + (b"?" + head.query if head.query else b"")
                found.messages.append(Message(head.method.encode(), target, data))
                if not head.keeps_alive:
                    found.end = "closed"
                    return found
                head = None
    except (BadHead, BadChunk):
        found.end = "refused"
        return found
    if head is not None or unread:
        found.end = "incomplete"
    return found


async def read_by_connection(pieces: Sequence[bytes]) -> Reading:
    """Read with a real `HttpConnection` and an application that takes every body."""
    connection = ConnectionUnderTest()
    for piece in pieces:
        connection.transport.feed(piece)
    before = (-1, -1)
    while before != (now := (len(connection.seen), len(connection.transport.written))):
        before = now
        await run_loop()
        await run_loop()
    statuses = connection.statuses()
    connection.close()
    while connection.state.tasks:
        await asyncio.wait(connection.state.tasks)
    found = Reading(
        [Message(m.method.encode(), m.target.encode(), m.body) for m in connection.seen]
    )
    if any(status >= 400 for status in statuses):
        found.end = "refused"
    return found


# -- h11 ------------------------------------------------------------------------------------------
def read_h11(raw: bytes) -> Reading:
    connection, found = h11.Connection(h11.SERVER), Reading()
    connection.receive_data(raw)
    request, parts = None, []
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if request is not None or connection.trailing_data[0].strip(b"\r\n"):
                    found.end = "incomplete"
                return found
            if isinstance(event, h11.Request):
                request, parts = event, []
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                found.messages.append(Message(request.method, request.target, b"".join(parts)))
                request = None
                # 2xx for CONNECT would open a tunnel
                connection.send(h11.Response(status_code=400, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    found.end = "closed"
                    return found
                connection.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        found.end = "refused"
        return found


# -- nginx ----------------------------------------------------------------------------------------
CONFIG = """
daemon off;
master_process off;
worker_priority 0;
error_log {folder}/error.log crit;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_http_version 1.1;
  proxy_ignore_client_abort on;
  proxy_set_header Host $http_host;
  proxy_set_header X-Fuzz-Peer $remote_port-$server_port;
  server {{
    listen 127.0.0.1:{ports[0]};
    location / {{ proxy_pass http://127.0.0.1:{ports[2]}; }}
  }}
  server {{
    listen 127.0.0.1:{ports[1]};
    location / {{ proxy_pass http://127.0.0.1:{ports[2]}; proxy_request_buffering off; }}
  }}
}}
"""
_PEER = re.compile(rb"\r\nX-Fuzz-Peer: ([0-9]+)-([0-9]+)\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")
_CHUNKED = re.compile(rb"\r\nTransfer-Encoding: chunked\r\n")


class Forwarded(NamedTuple):
    """One message as nginx sent it on: all its bytes, and its body as nginx framed it."""

    raw: bytes
    body: bytes
    is_complete: bool


class NginxReading(NamedTuple):
    forwarded: list[Forwarded]
    statuses: list[int]
    """Of nginx's responses: 200 for what was forwarded."""
    is_closed: bool
    """The last response says that the connection ends."""


class Nginx:
    """A running nginx. `read` takes a connection's bytes."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._fronts = ports[:2]
        self._forwarded: dict[tuple[int, int], list[Forwarded]] = {}  # by both ports

    async def read(self, raw: bytes, *, is_buffered: bool = True) -> NginxReading:
        """Send `raw` and the end of input; return when nginx has closed the connection."""
        port = self._fronts[0 if is_buffered else 1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = writer.get_extra_info("sockname")[1], port
        forwarded = self._forwarded[peer] = []
        answer = b""
        try:
            writer.write(raw)
            await writer.drain()
            writer.write_eof()
            while part := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
                answer += part
        except (ConnectionError, BrokenPipeError):
            pass  # nginx closed without reading all
        finally:
            del self._forwarded[peer]
            writer.transport.abort()
        statuses = [int(s) for s in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", answer)]
        is_closed = b"\r\nConnection: close\r\n" in answer
        return NginxReading(forwarded, statuses, is_closed)

    async def record(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The upstream: one message per connection."""
        raw = body = b""
        is_complete = False
        try:
            raw = head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is not None:
                body = await reader.readexactly(int(length[1]))
                raw += body
            elif _CHUNKED.search(head):
                while size := int(line := await reader.readuntil(b"\n"), 16):
                    chunk = await reader.readexactly(size + 2)
                    raw += line + chunk
                    body += chunk[:-2]
                raw += line + await reader.readexactly(2)
            is_complete = True
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raw += getattr(error, "partial", b"")
        peer = _PEER.search(raw)
        if peer is not None:
            found = self._forwarded.get((int(peer[1]), int(peer[2])))
            if found is not None:
                found.append(Forwarded(raw, body, is_complete))
            else:  # the client's end is there: nginx gives up what it has begun to send on
                assert not is_complete, raw
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Nginx]:
    """Run nginx with its recording upstream."""
    ports = free_ports(3)
    running = Nginx(ports)
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, ports=ports))
    upstream = await asyncio.start_server(running.record, "127.0.0.1", ports[2])
    process = _started(folder)
    try:
        await _wait_listening(ports[0])
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        upstream.close()


def _started(folder: Path) -> subprocess.Popen[bytes]:
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def _wait_listening(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("nginx does not listen")
