"""Ports for probes and scrapes, served by a thread with an event loop of its own.

A probe waits neither for the requests of the data port nor for their connections. The state that
it reads is read without locks. A loop of the data port that hangs is seen by its lag.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence

from starlette.routing import BaseRoute

from predictors.protocol.http.access import AccessPolicy
from predictors.protocol.http.app import HttpServer, RestApp
from predictors.protocol.http.listening import listen, loop_factory, port_of
from predictors.protocol.http.metrics_route import metrics_route
from predictors.protocol.registry import Registry
from predictors.protocol.v2.rest import probe_routes

CONNECTIONS = 32  # of each port; they need no more than a kubelet and a few scrapers


class SidePorts:
    """The health and metrics ports that are set: listening from the start, until `open_ports` is
    closed, and served from `start` to `stop`."""

    def __init__(
        self,
        registry: Registry,
        open_ports: contextlib.AsyncExitStack,
    ) -> None:
        self._settings = registry.settings.server
        self._open_ports = open_ports
        self._servers: dict[socket.socket, HttpServer] = {}
        own = self._settings
        self.health_port = self._listen(own.health_port, "health", probe_routes(registry))
        self.metrics_port = self._listen(own.metrics_port, "metrics", [metrics_route()])
        self._thread = threading.Thread(target=self._run, name="side-ports", daemon=True)

    def _listen(self, port: int, purpose: str, routes: Sequence[BaseRoute]) -> int:
        """The port in use; -1 for none."""
        if port < 0:
            return -1
        own = self._settings
        listener = self._open_ports.enter_context(listen(own.host, port, purpose))
        access = AccessPolicy(own.host, own.allowed_hosts, pages=False)
        app = RestApp(routes, access_log=own.access_log, access=access)
        self._servers[listener] = HttpServer(app, own, CONNECTIONS)
        return port_of(listener)

    def start(self) -> None:
        """Start the thread, if there is any port. Returns at once."""
        if self._servers:
            self._thread.start()

    async def stop(self) -> None:
        """Finish what is being answered, close the sockets and wait for the thread."""
        for server in self._servers.values():
            server.should_exit = True
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for listener, server in self._servers.items():
                group.create_task(server.serve(sockets=[listener]))
