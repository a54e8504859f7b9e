"""A model's server that starts when the test says so, and an activator before it, on real sockets.

A socket that is bound and does not listen refuses connections, as a Service without endpoints does.
What the model answers is a function of the test, which writes bytes to the connection.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import httpx
from prometheus_client import REGISTRY

from predictors.activator.http_proxy import HttpAddress
from predictors.activator.server import ActivatorServer, Upstream
from predictors.cluster.api import ApiUnavailable
from predictors.settings import ActivatorSettings, ServerSettings, Settings

PATIENCE_S = 120.0
READY = b"/v2/health/ready"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"

BRISK = ActivatorSettings(probe_s=0.02, scale_s=0.05, max_wait_s=PATIENCE_S, connect_timeout_s=30.0)


@dataclass
class Seen:
    """One request as the model's server received it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    reader: asyncio.StreamReader
    body: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    async def read_body(self) -> None:
        """The body, by its length or in chunks."""
        if lengths := self.values(b"content-length"):
            self.body = await self.reader.readexactly(int(lengths[0]))
        elif self.values(b"transfer-encoding"):
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                self.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)


Answer = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


async def plain(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Reads the body and answers with two bytes."""
    await seen.read_body()
    writer.write(OK)


@dataclass
class Model:
    """The server behind the activator. `answer` runs on its loop, for every path but readiness."""

    answer: Answer = plain
    seen: list[Seen] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_ready: bool = True
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._connections: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Listen: from now on there is an endpoint."""
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(PATIENCE_S)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """The value of `what` as soon as it is true; it is looked at after each request."""
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE_S), self.seen
            return what()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()
        self._socket.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    async def _end(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        method, target, _ = line.split(b" ")
        pairs = [each.partition(b":") for each in lines]
        fields = [(name.lower(), value.strip()) for name, _, value in pairs]
        seen = Seen(method, target, fields, reader)
        if target == READY and not seen.values(b"x-request-id"):
            status = b"200 OK" if self.is_ready else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        else:
            with self.changed:
                self.seen.append(seen)
                self.changed.notify_all()
            await self.answer(seen, writer)
        await writer.drain()


@dataclass
class Scale:
    """The scale API as the activator calls it, and the moment at which tests look at what is held:
    it is asked again and again while requests wait."""

    name: str
    replicas: int = 0
    failure: str = ""
    on_wake: Callable[[], None] = lambda: None
    calls: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    async def raise_from_zero(self) -> bool:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
        if self.failure:
            raise ApiUnavailable(self.failure)
        if self.replicas:
            return False
        self.replicas = 1
        await asyncio.to_thread(self.on_wake)
        return True

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """The value of `what` as soon as it is true."""
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE_S), f"{self.calls} calls"
            return what()

    def wait_held(self, count: int) -> None:
        self.wait_for(lambda: sample("requests_held", self.name) == count)


def sample(series: str, model: str, **labels: str) -> float:
    """The value of a series of the activator."""
    found = REGISTRY.get_sample_value(f"predictors_activator_{series}", {"model": model, **labels})
    assert found is not None, series
    return found


@dataclass
class Rig:
    """An activator that runs, the model behind it and its scale."""

    model: Model
    scale: Scale
    server: ActivatorServer
    thread: threading.Thread
    pool: ThreadPoolExecutor

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def post(self, path: str = "/v2/models/m/infer", content: Any = b"{}") -> httpx.Response:
        with self.client() as http:
            return http.post(path, content=content)

    def later(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        """Run `work` on a thread."""
        return self.pool.submit(work, *given)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.http_port), PATIENCE_S)

    def stop(self) -> None:
        """End the activator, after what is in progress."""
        self.server.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()

    def total(self, outcome: str, protocol: str = "v2_rest") -> float:
        """Requests that ended so, after the activator has ended: a caller may have its answer
        before the request is counted."""
        self.stop()
        return sample("requests_total", self.scale.name, protocol=protocol, outcome=outcome)


names = iter(f"model-{number}" for number in range(10_000))


@contextmanager
def activated(
    bounds: ActivatorSettings = BRISK, grpc_target: str = "", http_port: int = 0, **own: Any
) -> Iterator[Rig]:
    """An activator on free ports before a model that does not listen yet, or before another server
    that will have `http_port`."""
    model = Model()
    scale = Scale(next(names))
    server_settings = replace(ServerSettings(port=0, grpc_port=0, access_log=False), **own)
    server = ActivatorServer(
        Upstream(scale.name, HttpAddress("127.0.0.1", http_port or model.port), grpc_target),
        Settings(server=server_settings, activator=bounds),
        scale.raise_from_zero,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.wait_started(PATIENCE_S)
    with ThreadPoolExecutor(32) as pool:
        rig = Rig(model, scale, server, thread, pool)
        try:
            yield rig
        finally:
            rig.stop()
            model.close()


@contextmanager
def held_target() -> Iterator[str]:
    """`HOST:PORT` where nothing listens, and where a gRPC server may listen later."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def grpc_model(
    target: str, handlers: dict[str, grpc.RpcMethodHandler], service: str = "test.Model"
) -> grpc.Server:
    """A started gRPC server of a service on a held target."""
    options = [("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(32), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    assert server.add_insecure_port(target) == int(target.rpartition(":")[2])
    server.start()
    return server
