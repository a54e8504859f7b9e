"""Listening sockets for HTTP, on the same addresses as gRPC's, and the event loop that serves them.

`0.0.0.0` and `::` both mean all addresses of IPv4 and of IPv6.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from predictors.settings import ALIASES, InvalidSetting, ServerSettings, variable_name

ANY_ADDRESS = ("0.0.0.0", "::")
BACKLOG = 2048
PORT_FIELDS = {"HTTP": "port", "gRPC": "grpc_port"}
"""Settings of ports by purpose, where their names do not say it."""


def listen(host: str, port: int, purpose: str = "HTTP") -> socket.socket:
    """A listening socket. `0.0.0.0` and `::` both mean all addresses of IPv4 and IPv6, as they do
    to gRPC; where there is no IPv6, those of IPv4. Raises `InvalidSetting`, which names the port
    and its `purpose`."""
    try:
        listener = None if host not in ANY_ADDRESS else _listen_everywhere(port)
        if listener is None:
            host = "0.0.0.0" if host in ANY_ADDRESS else host
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        shown = f"{host}:{port} ({purpose})"
        reason = str(error.strerror).partition(" (while")[0]  # Python adds the address once more
        if error.errno == errno.EADDRINUSE:
            variable = variable_name(ServerSettings, PORT_FIELDS.get(purpose, f"{purpose}_port"))
            variable = ALIASES.get(variable, variable)
            reason += f" by another process; set {variable} to another port, or to 0 for a free one"
        raise InvalidSetting(f"can't listen on {shown}: {reason}") from error
    listener.setblocking(False)
    return listener


def grpc_fault(host: str, port: int) -> InvalidSetting:
    """The reason why gRPC can't listen there, which it does not tell: that of a plain socket."""
    try:
        listen(host, port, "gRPC").close()
    except InvalidSetting as fault:
        return fault
    return InvalidSetting(f"can't listen on {host}:{port} (gRPC)")


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _listen_everywhere(port: int) -> socket.socket | None:
    """A socket for IPv6 and IPv4; None on a machine without IPv6."""
    if not socket.has_dualstack_ipv6():
        return None
    try:
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # turned off by the system
            return None
        raise


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the event loops of this process; None for asyncio's own, where there is no uvloop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
