"""`ActivatorServer`: the life of the activator's process: its ports, signals, and the end.

At SIGTERM readiness goes first; for `server.linger_s` requests are still taken and their
connections closed; then what is held or in progress is finished within `server.drain_timeout_s`,
and what is left is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors import metrics
from predictors.activator.grpc_proxy import GrpcProxy, GrpcUpstream, start_grpc_proxy
from predictors.activator.http_proxy import HttpAddress, HttpProxy, HttpUpstream
from predictors.activator.proxying import Proxying
from predictors.activator.waking import WaitingRoom
from predictors.errors import FAILED_EXIT_CODE, Draining
from predictors.protocol.grpc.port import GrpcListener, linger
from predictors.protocol.http.app import CLOSE_TIMEOUT_S, HttpServer, PlainEndpoint, RestApp
from predictors.protocol.http.connection_limits import proxied_requests
from predictors.protocol.http.listening import listen, loop_factory, port_of
from predictors.protocol.http.metrics_route import metrics_route
from predictors.protocol.http.responses import Response, json_response
from predictors.settings import Settings

log = logging.getLogger(__name__)

SIDE_CONNECTIONS = 32  # of the ports of probes and scrapes


@dataclass(frozen=True, slots=True)
class Upstream:
    """The model behind an activator: its name, and where its Service is. `grpc_target` is
    `HOST:PORT`, empty for no gRPC."""

    model: str
    http: HttpAddress
    grpc_target: str


class ActivatorServer:
    """Proxies one model until a signal or `stop`.

    `run` blocks the thread that calls it; signals are handled only when that is the main thread.
    `stop` and `wait_started` may be called from any other. `raise_from_zero` is that of
    `WaitingRoom`.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings,
        raise_from_zero: Callable[[], Awaitable[bool]],
    ) -> None:
        own = settings.server
        self.http_port, self.grpc_port = own.port, own.grpc_port
        self.health_port, self.metrics_port = own.health_port, own.metrics_port
        self._settings = settings
        self._upstream = upstream
        self._raise_from_zero = raise_from_zero
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._lingers = False
        self._exit_code = 0

    # -- any thread ------------------------------------------------------------------------------
    def run(self) -> int:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(self.serve())

    def stop(self) -> None:
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._ending.set)

    def wait_started(self, timeout_s: float | None = None) -> bool:
        """Wait until all sockets listen; `http_port` and the others are then the ports in use."""
        return self._started.wait(timeout_s)

    # -- event loop ------------------------------------------------------------------------------
    async def serve(self) -> int:
        """Listen, proxy, drain, close. Returns the exit code."""
        self._loop = asyncio.get_running_loop()
        settings, own = self._settings, self._settings.server
        metrics.draining.set(0)
        http = HttpUpstream(self._upstream.http, settings.activator.connect_timeout_s)
        room = WaitingRoom(
            self._upstream.model, settings.activator, http.is_ready, self._raise_from_zero
        )
        proxying = Proxying(self._upstream.model, settings.activator, room)
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(http.close)
            data = opened.enter_context(listen(own.host, own.port))
            self.http_port = port_of(data)
            await self._open_side_ports(opened)
            most = proxied_requests(own.max_connections, settings.activator.max_held)
            grpc_listener = await self._start_grpc(proxying, most[1])
            app = RestApp(
                [Route("/{path:path}", HttpProxy(proxying, http, own.body_timeout_s))],
                access_log=own.access_log,
                closes_connections=self._ending.is_set,
            )
            http_server = HttpServer(app, own, most[0])
            serving = asyncio.create_task(http_server.serve(sockets=[data]))
            serving.add_done_callback(lambda _: self._lost("HTTP"))
            self._handle_signals()
            self._started.set()
            log.info(
                "before %s: HTTP %d, gRPC %d", self._upstream.model, self.http_port, self.grpc_port
            )
            await self._ending.wait()
            await self._end(proxying, grpc_listener)
            http_server.should_exit = True
            await serving
        self._loop = None
        log.info("stopped with exit code %d", self._exit_code)
        return self._exit_code

    async def _start_grpc(self, proxying: Proxying, most: int) -> GrpcListener | None:
        if self.grpc_port < 0 or not self._upstream.grpc_target:
            self.grpc_port = -1
            return None
        connect_timeout_s = self._settings.activator.connect_timeout_s
        upstream = GrpcUpstream(self._upstream.grpc_target, connect_timeout_s)
        found = await start_grpc_proxy(
            GrpcProxy(proxying, upstream, most, self._settings),
            self._settings,
            lambda: self._lost("gRPC"),
        )
        self.grpc_port = found.port
        return found

    async def _open_side_ports(self, opened: contextlib.AsyncExitStack) -> None:
        """Serve probes and scrapes of the activator itself on the ports that are set."""
        self.health_port = self._serve_side(opened, self.health_port, "health", self._probes())
        self.metrics_port = self._serve_side(
            opened, self.metrics_port, "metrics", [metrics_route()]
        )

    def _serve_side(
        self,
        opened: contextlib.AsyncExitStack,
        port: int,
        purpose: str,
        routes: Sequence[BaseRoute],
    ) -> int:
        if port < 0:
            return -1
        own = self._settings.server
        listener = opened.enter_context(listen(own.host, port, purpose))
        server = HttpServer(RestApp(routes, access_log=False), own, SIDE_CONNECTIONS)
        task = asyncio.create_task(server.serve(sockets=[listener]))

        async def close() -> None:
            server.should_exit = True
            await task

        opened.push_async_callback(close)
        return port_of(listener)

    def _probes(self) -> list[BaseRoute]:
        async def live(request: Request) -> Response:
            return json_response({"live": True})

        async def ready(request: Request) -> Response:
            if self._ending.is_set():
                raise Draining("the activator is shutting down")
            return json_response({"ready": True})

        paths = {"/v2/health/live": live, "/v2/health/ready": ready}
        return [Route(path, PlainEndpoint(each), methods=["GET"]) for path, each in paths.items()]

    # -- the end ---------------------------------------------------------------------------------
    def _lost(self, protocol: str) -> None:
        """A data port is not served any more."""
        if not self._ending.is_set():
            log.critical("%s is not served any more, the process ends", protocol)
            self._exit_code = FAILED_EXIT_CODE
            self._ending.set()

    async def _end(self, proxying: Proxying, grpc_listener: GrpcListener | None) -> None:
        own = self._settings.server
        metrics.draining.set(1)
        if self._lingers:
            await linger(own, grpc_listener)
        proxying.is_draining = True
        log.info("draining %d requests", proxying.num_in_progress)
        if not await proxying.wait_idle(own.drain_timeout_s):
            log.warning("%d requests are refused or cut off", proxying.num_in_progress)
            proxying.room.refuse("the activator shuts down and the model did not start; try again")
            await proxying.wait_idle(CLOSE_TIMEOUT_S)
        if grpc_listener is not None:
            await grpc_listener.stop(CLOSE_TIMEOUT_S)

    def _handle_signals(self) -> None:
        if threading.current_thread() is threading.main_thread() and self._loop is not None:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        if self._ending.is_set():
            log.warning("second signal: ending now")
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: draining", signal.Signals(number).name)
        self._lingers = number == signal.SIGTERM
        self._ending.set()
