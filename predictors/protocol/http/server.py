"""uvicorn's server, told to serve HTTP/1 by our own connections and to leave signals alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial

import uvicorn

from predictors.protocol.http.app import RestApp
from predictors.protocol.http.connection import HttpConnection
from predictors.protocol.http.places import Places
from predictors.settings import ServerSettings

LAST_WORDS_S = 5.0  # for answers that are written while the sockets close
BACKLOG = 2048
ADMIN_CONNECTIONS = 16


class HttpServer(uvicorn.Server):
    """Serves `app` on the sockets that `serve` is given, to `limit` connections at once, until
    `should_exit` is set."""

    def __init__(self, app: RestApp, settings: ServerSettings, limit: int) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        connection = partial(
            HttpConnection, places=Places(limit), write_timeout_s=settings.write_timeout_s
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=int(LAST_WORDS_S),
                backlog=BACKLOG,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured: the process has one owner."""
        yield

    def cut_off(self) -> None:
        """End the connections whose callers have responses to read and don't."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection) and connection.is_write_paused:
                connection.abort()
