"""Limits on HTTP connections: how many are open, how long they wait, how slowly a client may read.

Without a limit the process would run out of file descriptors before memory, and then even probes
could not connect. At the limit, a new connection replaces the one that has been idle longest, never
one with a request in progress, unless that is a probe. The last slots are kept for probes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from predictors.protocol.http.parsing import Head

log = logging.getLogger(__name__)

DEFAULT_CONNECTIONS = 8192  # of HTTP, when the setting is 0 and descriptors allow it
MAX_GRPC_CONNECTIONS = 1024
PROXIED_CALLS = 1024
"""gRPC calls that a proxy passes on at a time: each takes about 60 KiB beside its messages."""
MIN_CONNECTIONS = 8
RESERVED_FILES = 64  # or a quarter of all if more: for models, logs, threads and processes
MAX_FILES = 65_536
LOG_INTERVAL_S = 60.0
MIN_BYTES_PER_S = 1024  # average over the timeout
CHECKS_PER_TIMEOUT = 4

_PROBES = re.compile(
    rb"/|/health|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready"
)


class Connection(Protocol):
    def abort(self) -> None:
        """Close now, dropping unsent data."""


class ConnectionLimit:
    """The open connections of one listening socket. Event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._for_probes = max(2, min(16, limit // 8))
        self._open: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()  # the longest idle first
        self._probing: OrderedDict[Connection, None] = OrderedDict()  # whose request is a probe
        self._logged_at = -LOG_INTERVAL_S

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_busy(self) -> int:
        """Connections with a request in progress that is no probe."""
        return len(self._open) - len(self._idle) - len(self._probing)

    def add(self, connection: Connection) -> bool:
        """Register a new, idle connection; at the limit, close the one that has been idle longest.

        Without an idle one, that with the oldest probe in progress is closed: a probe is answered
        at once, so its client does not read. Returns False if all others have other requests in
        progress. The caller then refuses the new connection, which stays registered as idle and is
        closed for the next one.
        """
        has_room = len(self._open) < self.limit
        if not has_room:
            self._log_full("those that have waited longest for a request are closed")
        if not has_room and (replaceable := self._idle or self._probing):
            oldest = next(iter(replaceable))
            self.remove(oldest)
            oldest.abort()
            has_room = True
        self._open.add(connection)
        self._idle[connection] = None
        return has_room

    def start_request(self, connection: Connection, head: Head) -> bool:
        """Mark the connection busy. Returns False if only slots for probes are left."""
        if self.num_busy >= self.limit - self._for_probes and not is_probe(head):
            self._log_full("all are busy, requests are refused")
            return False
        self._idle.pop(connection, None)
        if is_probe(head) and connection in self._open:
            self._probing[connection] = None
        return True

    def end_request(self, connection: Connection) -> None:
        """Mark the connection idle: its request was answered, or it is about to close."""
        self._probing.pop(connection, None)
        if connection in self._open:
            self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._probing.pop(connection, None)

    def _log_full(self, what: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning(
                "%d HTTP connections are open, that is the limit: %s", len(self._open), what
            )


def is_probe(head: Head) -> bool:
    return head.method in {"GET", "HEAD"} and _PROBES.fullmatch(head.path) is not None


def max_connections(wanted: int) -> int:
    """`wanted`, bounded by the limit on open files; 0 means as many as possible."""
    possible = _possible_connections()
    if possible is None:
        return max(MIN_CONNECTIONS, wanted or DEFAULT_CONNECTIONS)
    return _within(wanted, possible - max_grpc_connections())


def _within(wanted: int, possible: int) -> int:
    possible = max(MIN_CONNECTIONS, possible)
    if wanted > possible:
        log.warning(
            "server.max_connections is %d, but the limit of open files leaves %d", wanted, possible
        )
    return max(MIN_CONNECTIONS, min(wanted or DEFAULT_CONNECTIONS, possible))


def proxied_requests(wanted: int, held: int) -> tuple[int, int]:
    """HTTP connections and gRPC calls that a proxy takes at a time, within the limit on open files:
    each needs a second connection to go on. `wanted` connections, 0 for as many as possible; at
    least `held` calls, where there are files for them."""
    calls = max(PROXIED_CALLS, held)
    possible = _possible_connections()
    if possible is None:
        return max(MIN_CONNECTIONS, wanted or DEFAULT_CONNECTIONS), calls
    left = possible - max_grpc_connections()
    calls = min(calls, left // 4)
    return _within(wanted, (left - calls) // 2), max(MIN_CONNECTIONS, calls)


def max_grpc_connections() -> int:
    """gRPC connections to accept: a quarter of all, since each carries many calls."""
    possible = _possible_connections()
    if possible is None:
        return MAX_GRPC_CONNECTIONS
    return max(MIN_CONNECTIONS // 2, min(MAX_GRPC_CONNECTIONS, possible // 4))


def _possible_connections() -> int | None:
    """Connections that the limit on open files allows; None if there is no limit."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return None
    return max(MIN_CONNECTIONS, files - max(RESERVED_FILES, files // 4))


def raise_file_limit() -> None:
    """Raise the soft limit on open files towards the hard limit, to `MAX_FILES` at most.

    The usual soft limit of 1,024 exists for programs that use `select`. Higher than needed would be
    slow: some child processes close every descriptor number up to their limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class ConnectionDeadline:
    """Calls `callback` when the deadline set last has passed. Event loop only.

    Moving the deadline, which happens with each request, is nearly free: a later deadline leaves
    the loop's timer as it is. When the timer fires too early, it is set again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        self._at = self._loop.time() + seconds
        if self._timer is not None and self._timer_at > self._at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._arm(self._at)

    def clear(self) -> None:
        """Remove the deadline. The timer stays, since the next deadline is usually later."""
        self._at = None

    def end(self) -> None:
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._arm(self._at)
            return
        self._at = None
        self._callback()


class SlowReaderTimeout:
    """Closes the connection of a client that reads its response too slowly, since a blocked write
    holds a slot of the server. Event loop only.

    Calls `on_stalled` when the client takes less than `MIN_BYTES_PER_S` on average over the
    timeout. A client that takes that much gets the whole timeout again. A timeout of 0 disables it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.WriteTransport,
        timeout_s: float,
        on_stalled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_s = timeout_s
        self._on_stalled = on_stalled
        self._min_bytes = int(MIN_BYTES_PER_S * timeout_s)
        self._size = 0  # unsent bytes when the current period began
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start watching the transport's unsent bytes. No effect if already started."""
        if self._timer is None and self._timeout_s > 0:
            self._size = self._transport.get_write_buffer_size()
            self._since = self._loop.time()
            self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s / CHECKS_PER_TIMEOUT, self._check)

    def _check(self) -> None:
        self._timer = None
        size, now = self._transport.get_write_buffer_size(), self._loop.time()
        if size == 0:
            return
        if self._size - size >= self._min_bytes:
            self._size, self._since = size, now
        elif now - self._since >= self._timeout_s:
            log.info("a caller took less than %d bytes in %g s", self._min_bytes, self._timeout_s)
            self._on_stalled()
            return
        self._size = max(self._size, size)
        self._arm()
