"""`PredictorServer`: one event loop with REST and gRPC sockets, signals, shutdown and exit code.

A `kserve.ModelServer` with its own `start` and `stop`: KServe's closes the HTTP socket at SIGTERM,
keeps gRPC open, and answers no probe meanwhile. Here readiness goes first; for `server.linger_s`
requests are still served and their connections closed; then accepted requests are finished and new
ones get a 503. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.routing import BaseRoute

from predictors import metrics
from predictors.errors import FAILED_EXIT_CODE, EngineFailed
from predictors.protocol.addresses import is_loopback
from predictors.protocol.anthropic.routes import anthropic_routes
from predictors.protocol.callers import Callers
from predictors.protocol.certificates import Certificates, check_tls
from predictors.protocol.grpc.listening import start_grpc
from predictors.protocol.grpc.port import GrpcListener, linger
from predictors.protocol.http.access import AccessPolicy, check_addresses
from predictors.protocol.http.app import (
    ADMIN_CONNECTIONS,
    CLOSE_TIMEOUT_S,
    HttpServer,
    RestApp,
)
from predictors.protocol.http.connection_limits import max_connections
from predictors.protocol.http.listening import listen, loop_factory, port_of
from predictors.protocol.http.metrics_route import metrics_route
from predictors.protocol.http.side_ports import SidePorts
from predictors.protocol.kserve_sdk import ModelServer
from predictors.protocol.monitors import watch_overload
from predictors.protocol.openai.routes import openai_routes
from predictors.protocol.openapi.routes import openapi_routes
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served
from predictors.protocol.v2.rest import v2_routes
from predictors.settings import Settings
from predictors.workers.pool import Workers

log = logging.getLogger(__name__)

AdminRoutes = Callable[[Registry, asyncio.Event], Sequence[BaseRoute]]
"""Makes the routes of the admin port. The event is set when the server begins to shut down."""


class PredictorServer(ModelServer):  # type: ignore[misc]
    """Serves `models` until a signal or `stop`.

    `run` blocks the thread that calls it; signals are only handled when that is the main thread.
    `stop` and `wait_started` may be called from any other. `routes` are served beside V2 and
    OpenAI, and replace theirs of one path. `on_drain` is called on the event loop when a shutdown
    begins, with the requests in flight and the seconds they have; `on_ready` when the readiness
    probe has its first 200. Without `admin_routes` there is
    no admin port. `workers` parse large bodies; they are closed by the caller.
    """

    http_port: int
    grpc_port: int
    health_port: int
    metrics_port: int
    admin_port: int

    def __init__(
        self,
        models: Sequence[Served],
        settings: Settings,
        *,
        routes: Sequence[BaseRoute] = (),
        on_drain: Callable[[int, float], object] = lambda in_flight, seconds: None,
        on_ready: Callable[[], object] = lambda: None,
        admin_routes: AdminRoutes | None = None,
        workers: Workers | None = None,
    ) -> None:
        own = settings.server
        super().__init__(
            http_port=own.port,
            grpc_port=own.grpc_port,
            workers=1,
            enable_grpc=own.grpc_port >= 0,
            grace_period=int(own.drain_timeout_s),
        )
        self.settings = settings
        self.registry = Registry(models, settings, workers)
        self._owns_workers = workers is None
        for model in models:
            self.registered_models.update(model)
        self._routes = routes
        self._on_drain = on_drain
        self._on_ready = on_ready
        self._admin_routes = admin_routes
        self.admin_port = own.admin_port if admin_routes is not None else -1
        self.health_port, self.metrics_port = own.health_port, own.metrics_port
        self._certificates: Certificates | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._draining = asyncio.Event()
        self._exit_code = 0
        self._drain_s = own.drain_timeout_s
        self.exit_now: Callable[[int], object] = os._exit

    # -- any thread ------------------------------------------------------------------------------
    def run(self) -> int:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(self.serve())

    def start(self, models: Sequence[Served] = ()) -> None:
        """KServe's entry: serve `models` too, until a signal or `stop`."""
        for model in models:
            self.register_model(model)
        self.run()

    def register_model(self, model: Served, name: str | None = None) -> None:
        """KServe's way to add a model before the start."""
        super().register_model(model, name)
        self.registry.add(model)

    def stop(self, sig: int = 0) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_end, 0)

    def wait_started(self, timeout_s: float | None = None) -> bool:
        """Wait until all sockets listen; `http_port` and the others are then the ports in use."""
        return self._started.wait(timeout_s)

    # -- event loop ------------------------------------------------------------------------------
    async def serve(self) -> int:
        """The life of the process: listen, load, serve, drain, close."""
        self._loop = asyncio.get_running_loop()
        self.registry.check_aliases()
        if check_addresses(self.settings):
            log.warning("no API key is needed, and others can reach this server (access.open)")
        metrics.draining.set(0)
        async with contextlib.AsyncExitStack() as open_ports:
            own = self.settings.server
            self._follow_certificates(open_ports)
            data = open_ports.enter_context(listen(own.host, self.http_port))
            self.http_port = port_of(data)
            side_ports = SidePorts(self.registry, open_ports)
            self.health_port, self.metrics_port = side_ports.health_port, side_ports.metrics_port
            self._serve_admin(open_ports)
            grpc_listener = await self._start_grpc()
            http_server = self._http = self._http_server(
                self._data_routes(),
                AccessPolicy(own.host, own.allowed_hosts, origins=own.allowed_origins),
                max_connections(own.max_connections),
                self._certificates,
                self.registry.callers,
            )
            self.registry.pending_bodies.most_of_one = http_server.connections.limit // 2
            open_ports.callback(
                watch_overload(self.registry, http_server.connections, self._on_ready)
            )
            open_ports.push_async_callback(self.registry.callers.stop)
            self.registry.callers.start()
            self._handle_signals()
            http_task = asyncio.create_task(http_server.serve(sockets=[data]))
            http_task.add_done_callback(lambda _: self._lost("HTTP"))
            side_ports.start()
            open_ports.push_async_callback(side_ports.stop)  # after all else has ended
            self._start_models()
            self._started.set()
            log.info(
                "serving %s on %s: %s", ", ".join(self.registry.models), own.host, self._ports()
            )
            await self._ending.wait()
            await self._linger(grpc_listener)
            await self._drain(http_server)
            http_server.should_exit = True
            await http_task
            if grpc_listener is not None:
                await grpc_listener.stop(CLOSE_TIMEOUT_S)
            await _all_in_threads([model.stop for model in self.registry.startable])
        self.registry.close()
        if self._owns_workers:
            await asyncio.to_thread(self.registry.workers.close)
        log.info("stopped with exit code %d", self._exit_code)
        return self._exit_code

    def _follow_certificates(self, open_ports: contextlib.AsyncExitStack) -> None:
        """Read the TLS files, if there are any, and follow them until `open_ports` is closed."""
        tls = self.settings.tls
        if not check_tls(tls):
            return
        self._certificates = Certificates(tls)
        self._certificates.start()
        open_ports.callback(self._certificates.stop)
        if self._certificates.needs_client_certificate and self.health_port < 0:
            log.warning(
                "clients need a certificate, and a kubelet has none: set PREDICTORS_SERVER_"
                "HEALTH_PORT for its probes"
            )

    def _data_routes(self) -> list[BaseRoute]:
        others = [*self._routes, *([metrics_route()] if self.metrics_port < 0 else [])]
        own = {getattr(route, "path", "") for route in self._routes}
        makers = (v2_routes, openai_routes, anthropic_routes)
        routes = [route for make in makers for route in make(self.registry)]
        made = [*routes, *openapi_routes(self.registry, others)]
        return [*(route for route in made if getattr(route, "path", "") not in own), *others]

    def _ports(self) -> str:
        ports = {
            "HTTP" if self._certificates is None else "HTTPS": self.http_port,
            "gRPC": self.grpc_port if self.enable_grpc else -1,
            "health": self.health_port,
            "metrics": self.metrics_port,
            "admin": self.admin_port,
        }
        return ", ".join(f"{name} {port}" for name, port in ports.items() if port >= 0)

    def _serve_admin(self, open_ports: contextlib.AsyncExitStack) -> None:
        """Serve the admin port, if it is set, until `open_ports` is closed."""
        if self._admin_routes is None or self.admin_port < 0:
            return
        own = self.settings.server
        listener = open_ports.enter_context(listen(own.admin_host, self.admin_port, "admin"))
        self.admin_port = port_of(listener)
        access = AccessPolicy(own.admin_host, own.allowed_hosts, pages=False)
        routes = self._admin_routes(self.registry, self._ending)
        # a loopback address is reached through a tunnel, or from inside the pod
        certificates = None if is_loopback(own.admin_host) else self._certificates
        server = self._http_server(
            [*routes, metrics_route()], access, ADMIN_CONNECTIONS, certificates
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("admin on %s: HTTP %d", own.admin_host, self.admin_port)

        async def stop() -> None:
            server.should_exit = True
            await task

        open_ports.push_async_callback(stop)

    def _http_server(
        self,
        routes: Sequence[BaseRoute],
        access: AccessPolicy,
        limit: int,
        certificates: Certificates | None,
        callers: Callers | None = None,
    ) -> HttpServer:
        own = self.settings.server
        app = RestApp(
            routes,
            access_log=own.access_log,
            closes_connections=self.registry.closes_connections,
            access=access,
            callers=callers,
        )
        return HttpServer(app, own, limit, certificates)

    async def _start_grpc(self) -> GrpcListener | None:
        if not self.enable_grpc:
            return None
        found = await start_grpc(self.registry, lambda: self._lost("gRPC"), self._certificates)
        self.grpc_port = found.port
        return found

    def _start_models(self) -> None:
        for model in self.registry.startable:
            model.start(self._engine_failed)

    async def _linger(self, grpc_listener: GrpcListener | None) -> None:
        """Serve on for `linger_s`, closing each HTTP connection with its response. gRPC's reach the
        age at which they are closed."""
        own = self.settings.server
        if self.registry.is_draining:
            return
        log.info("serving requests that still come for %g s", own.linger_s)
        waits = [linger(own, grpc_listener), self._draining.wait()]
        tasks = [asyncio.ensure_future(each) for each in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        self._refuse()

    async def _drain(self, http_server: HttpServer) -> None:
        """Finish what was accepted, and fail what is left when the time is over."""
        waiting_s = self._drain_s
        self._on_drain(self.registry.in_flight, waiting_s)
        log.info("draining %d requests for at most %g s", self.registry.in_flight, waiting_s)
        if not await self.registry.wait_idle(waiting_s):
            log.warning("%d requests are cut off", self.registry.in_flight)
            cut = [model.cut_off for model in self.registry.startable]
            await _all_in_threads([self.registry.workers.close, *cut])
            http_server.abort_unread()
            await self.registry.wait_idle(CLOSE_TIMEOUT_S)

    # -- shutdown --------------------------------------------------------------------------------
    def _begin_end(self, exit_code: int, *, lingers: bool = False) -> None:
        """Report not ready from now on, and refuse new requests unless the process `lingers`."""
        self._exit_code = self._exit_code or exit_code
        self.registry.start_leaving()
        if not lingers:
            self._refuse()
        self._ending.set()

    def _refuse(self) -> None:
        self.registry.drain()
        self._draining.set()

    def _engine_failed(self, error: EngineFailed) -> None:
        """Called on the engine thread, after all that was in flight has been answered."""
        log.critical("an engine failed, the process ends: %s", error.message)
        self._drain_s = CLOSE_TIMEOUT_S  # nothing else will be answered
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._begin_end, FAILED_EXIT_CODE)

    def _lost(self, protocol: str) -> None:
        """A data port is not served any more. What came through the other one is finished."""
        if not self._ending.is_set():
            log.critical("%s is not served any more, the process ends", protocol)
            self._begin_end(FAILED_EXIT_CODE)

    def _handle_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread() or self._loop is None:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        if self._ending.is_set():
            log.warning("second signal: ending now, %d requests lost", self.registry.in_flight)
            logging.shutdown()
            self.exit_now(128 + number)
            return
        log.info("%s: draining", signal.Signals(number).name)
        # a process that is interrupted from a terminal is behind no load balancer
        self._begin_end(0, lingers=number == signal.SIGTERM and self.settings.server.linger_s > 0)


async def _all_in_threads(works: Sequence[Callable[[], Any]]) -> None:
    running: list[Coroutine[Any, Any, Any]] = [asyncio.to_thread(work) for work in works]
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.error("closing a model failed", exc_info=outcome)
