"""Ports for probes and scrapes, served by a thread with an event loop of its own.

A probe waits neither for the requests of the data port nor for their connections. The state that
it reads is read without locks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Mapping

from predictors.protocol.http.app import HttpServer, RestApp
from predictors.protocol.http.listening import loop_factory
from predictors.settings import ServerSettings

log = logging.getLogger(__name__)

CONNECTIONS = 32  # of each port; they need no more than a kubelet and a few scrapers


class SidePorts:
    """Serves an application per listening socket, from `start` to `stop`."""

    def __init__(self, apps: Mapping[socket.socket, RestApp], settings: ServerSettings) -> None:
        self._servers = {
            listener: HttpServer(app, settings, CONNECTIONS) for listener, app in apps.items()
        }
        self._thread = threading.Thread(target=self._run, name="side-ports", daemon=True)

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
