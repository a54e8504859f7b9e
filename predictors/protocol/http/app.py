"""The ASGI application of all REST routes, and the uvicorn server that runs it.

`RestApp` adds the request id, access log, access policy, and the error bodies of 404, 405 and
unexpected errors. It uses Starlette's router without its middleware, which would answer an
unexpected error and raise it again, so that the connection is cut.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route, Router

from predictors.errors import Cancelled, InvalidRequest, NotFound, ServingError
from predictors.observe import logs
from predictors.observe.sampling import SampledLines
from predictors.protocol.addresses import FORWARDED_HEADER
from predictors.protocol.call import REQUEST_ID_HEADER, Call, check_single, repeated_header
from predictors.protocol.callers import Callers
from predictors.protocol.certificates import Certificates
from predictors.protocol.error_formats import error_format
from predictors.protocol.faults import fault_of
from predictors.protocol.http.access import AccessPolicy, RawHeaders, preflight_headers
from predictors.protocol.http.bodies import Receive
from predictors.protocol.http.connection import HttpConnection
from predictors.protocol.http.connection_limits import ConnectionLimit
from predictors.protocol.http.exchange import CALL_KEY, STATUS_KEY, Scope
from predictors.protocol.http.listening import BACKLOG
from predictors.protocol.http.responses import JSON_TYPE, Response, Send, send_response
from predictors.protocol.http.tls import TlsListener
from predictors.protocol.http.unoffered import meant_route, reason_of
from predictors.protocol.outcomes import log_refused_key, result_or_error
from predictors.settings import ServerSettings

access_log = logging.getLogger("predictors.access")
_sampled = SampledLines(access_log)
_REFUSALS = (401, 429, 503)  # statuses whose lines are sampled

CLOSE_TIMEOUT_S = 5.0  # for responses that are still being written at the end
ADMIN_CONNECTIONS = 16
_REQUEST_ID = REQUEST_ID_HEADER.encode("ascii")
_CLOSE = (b"connection", b"close")
_LISTS = frozenset({"content-encoding", FORWARDED_HEADER})
PREFLIGHT_HEADER = "access-control-request-method"
MAX_PATH = 1024  # characters of a path; each route's pattern reads them all
_SHOWN_PATH = 200  # characters of a path in the log
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_READS = ("GET", "HEAD")
_SECRET = "/images/files/"  # what follows in a path gives access to a picture
_PROBES = ("/", "/health", "/metrics", "/v2/health/live", "/v2/health/ready")


class PlainEndpoint:
    """A cheap request that needs no model. It is not counted in the request metrics."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_response(send, await self._answer(Request(scope, receive)))


def _by_name(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Each header's last value; of one that is a list, all its lines as one."""
    headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in raw}
    if len(headers) < len(raw):
        for name in _LISTS.intersection(headers):
            lines = [v.decode("latin-1") for k, v in raw if k == name.encode()]
            headers[name] = ",".join(lines)
    return headers


def _head_refusal(scope: Scope, call: Call) -> ServingError | None:
    """The error for a head that is well formed and has no one meaning."""
    raw: Sequence[tuple[bytes, bytes]] = scope["headers"]
    if len(call) < len(raw):
        try:
            check_single(repeated_header((name.decode("latin-1"), value) for name, value in raw))
        except InvalidRequest as error:
            return error
    return _path_refusal(scope["path"])


def _path_refusal(path: str) -> ServingError | None:
    """The error for a path that is in no route and in no name."""
    if len(path) > MAX_PATH:
        return NotFound(f"there is no route of more than {MAX_PATH} characters")
    if control := _CONTROL.search(path):  # a route's `$` matches before a line end
        return InvalidRequest(
            f"the path has the control character %{ord(control[0]):02X} in it, which is in no "
            "name: leave it out"
        )
    return None


def _fixed_routes(routes: Sequence[BaseRoute]) -> dict[tuple[str, str], Route]:
    """By method and path the routes whose paths have no parameters, so that a request is not
    compared with one pattern after the other. Left out are those that the router does not reach."""
    found: dict[tuple[str, str], Route] = {}
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            for method in route.methods or ():
                scope = {"type": "http", "method": method, "path": route.path}
                first = next(each for each in routes if each.matches(scope)[0] is Match.FULL)
                if first is route:
                    found[method, route.path] = route
    return found


class RestApp:
    """The REST application. Event loop only.

    `access` refuses requests of other origins; None allows all. `callers` tell callers apart and
    check their keys; None lets all in. While `closes_connections` returns true, every response
    closes its connection, so that keep-alive clients reconnect to another replica.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        *,
        access_log: bool,
        closes_connections: Callable[[], bool] = lambda: False,
        access: AccessPolicy | None = None,
        callers: Callers | None = None,
    ) -> None:
        self._access = access
        self._callers = callers
        self._closes_connections = closes_connections
        self._access_log = access_log
        self._router = Router(list(routes), redirect_slashes=False, default=self._no_route)
        self._fixed = _fixed_routes(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.monotonic()
        call = scope[CALL_KEY] = Call(_by_name(scope["headers"]), protocol="v2_rest")
        logs.request_id.set(call.request_id)  # each request runs in its own task
        callers = self._callers
        if callers is not None:
            peer = scope["client"]
            callers.name(call, peer[0] if peer else "")
        request_id = (_REQUEST_ID, call.request_id.encode("ascii"))
        scope["app"] = self  # makes routes raise HTTPException for a wrong method

        shared: RawHeaders = ()

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                closing = [_CLOSE] if self._closes_connections() else []
                message["headers"] = [*message["headers"], request_id, *shared, *closing]
                scope[STATUS_KEY] = message["status"]
            await send(message)

        error: Exception | None = _head_refusal(scope, call)
        if error is None and self._access is not None:
            error = self._access.refusal(call, scope["headers"], scope["path"])
            if error is None:
                shared = self._access.shared_headers(call, scope["path"])
        is_preflight = scope["method"] == "OPTIONS" and PREFLIGHT_HEADER in call and len(shared) > 1
        is_checked = callers is not None and callers.keys is not None and not is_preflight
        if error is None and callers is not None and is_checked:
            error = callers.refusal(call, scope["path"])
            if error is not None:
                log_refused_key(call, error_format(scope["path"]).protocol)
        if error is None:
            route = self._fixed.get((scope["method"], scope["path"]))
            routed = self._router if route is None else route.app
            run = self._preflight if is_preflight else routed
            error = await result_or_error(run(scope, receive, send_with_id))
        if isinstance(error, Cancelled):
            scope[STATUS_KEY] = 499
        elif error is not None:
            response = _fault_response(scope, error, call)
            if STATUS_KEY not in scope:
                await send_response(send_with_id, response)
        if self._access_log:
            self._log(scope, call, time.monotonic() - started)

    async def _preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell a browser what a page of a listed origin may send to this path."""
        methods: set[str] = set()
        for route in self._router.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                methods |= route.methods or set()
        if not methods:
            raise NotFound(f"there is no route {scope['path'][:_SHOWN_PATH]!r}")
        asked = scope[CALL_KEY].get("access-control-request-headers", "")
        await send_response(send, Response(b"", 204, preflight_headers(methods, asked)))

    async def _no_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a GET path with one trailing slash as the path without it; anything else is a 404.

        Other methods are not rewritten: a proxy that guards a path must not have to know a second
        spelling of it.
        """
        path: str = scope["path"]
        if scope["method"] in _READS and len(path) > 1 and path[-1] == "/" and path[-2] != "/":
            scope["path"] = path[:-1]
            await self._router(scope, receive, send)
        else:
            served = {route.path for route in self._router.routes if isinstance(route, Route)}
            hint = reason_of(path) or meant_route(path, served)
            raise NotFound(f"there is no route {path[:_SHOWN_PATH]!r}{hint}")

    def _log(self, scope: Scope, call: Call, seconds: float) -> None:
        path = scope.get("raw_path", b"").decode("ascii", "replace")  # still percent-encoded
        if path in _PROBES or path.endswith("/ready"):
            return
        status = scope.get(STATUS_KEY, 500)
        left_out = _sampled.admit(str(status)) if status in _REFUSALS else 0
        if left_out is None:
            return
        before, secret, _ = scope["path"].partition(_SECRET)
        if secret:
            path = f"{before}{secret}*"
        log_fields = {
            "method": scope["method"],
            "path": path[:_SHOWN_PATH],
            "status": status,
            "total_ms": round(seconds * 1000, 1),
            "request_id": call.request_id,
        }
        extra = {**log_fields, "left_out": left_out} if left_out else log_fields
        access_log.info("%s %s %d %.1f ms %s", *log_fields.values(), extra=extra)


def _fault_response(scope: Scope, error: Exception, call: Call) -> Response:
    path: str = scope["path"]
    headers: list[tuple[str, str]] = [JSON_TYPE]
    if isinstance(error, HTTPException):
        shown = InvalidRequest(f"{scope['method']} is not allowed on {path[:_SHOWN_PATH]!r}")
        headers += [(k.lower(), v) for k, v in (error.headers or {}).items()]
        fault, status = fault_of(shown), error.status_code
    else:
        fault = fault_of(error, request_id=call.request_id)
        status = fault.status
    return Response(error_format(path).body_of(fault), status, (*headers, *fault.headers))


class HttpServer(uvicorn.Server):
    """uvicorn server with `HttpConnection` as its HTTP/1 protocol and at most `limit` connections.
    Serves `app` until `should_exit` is set, over TLS where there are `certificates`."""

    def __init__(
        self,
        app: RestApp,
        settings: ServerSettings,
        limit: int,
        certificates: Certificates | None = None,
    ) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self.connections = ConnectionLimit(limit)
        self._certificates = certificates
        self._make_connection = partial(
            HttpConnection, limit=self.connections, write_timeout_s=settings.write_timeout_s
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=self._make_connection,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=int(CLOSE_TIMEOUT_S),
                backlog=BACKLOG,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn: accept connections of `sockets`."""
        if self._certificates is None:
            await super().startup(sockets)
            return
        made_by = {"config": self.config, "server_state": self.server_state, "app_state": {}}
        connection = partial(self._make_connection, **made_by)
        self.servers = [
            TlsListener(each, connection, self._certificates, self.connections)  # type: ignore[misc]
            for each in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: the process handles its signals itself."""
        yield

    def abort_unread(self) -> None:
        """Abort connections whose clients have a response to read and do not read it."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection) and connection.is_write_paused:
                connection.abort()
