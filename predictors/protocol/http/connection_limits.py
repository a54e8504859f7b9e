"""How many connections may be open, and who makes room when there are more.

File descriptors run out before memory does, and then nobody gets in, probes neither. So there is a
limit below theirs: whoever has waited longest without a request is closed for a newcomer, never one
whose request is being answered. The last places are kept for probes.
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

MOST = 8192  # connections, where nobody says how many
MOST_GRPC = 1024
LEAST = 8
RESERVED_FILES = 64  # descriptors, or a quarter: for models, logs, threads and processes
MAX_FILES = 65_536
SAY_AGAIN_S = 60.0
MIN_BYTES_PER_S = 1024  # on average over the timeout
LOOKS = 4  # per timeout

_PROBES = re.compile(
    rb"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready"
)


class Connection(Protocol):
    """A connection that takes a place."""

    def abort(self) -> None:
        """End now."""


class ConnectionLimit:
    """The open connections of one socket. Event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._for_probes = max(2, min(16, limit // 8))
        self._open: set[Connection] = set()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()  # the longest first
        self._said_at = -SAY_AGAIN_S

    def enter(self, connection: Connection) -> bool:
        """A connection was made and waits for a request; whoever has waited longest makes room.

        False where nobody does: it can only be told so, and makes room for the next.
        """
        has_room = len(self._open) < self.limit
        if not has_room:
            self._say("those that have waited longest for a request are closed")
        if not has_room and self._waiting:
            longest = next(iter(self._waiting))
            self.leave(longest)
            longest.abort()
            has_room = True
        self._open.add(connection)
        self._waiting[connection] = None
        return has_room

    def begin(self, connection: Connection, head: Head) -> bool:
        """Its request begins; false where only places for probes are left."""
        busy = len(self._open) - len(self._waiting)
        if busy >= self.limit - self._for_probes and not is_probe(head):
            self._say("all are busy, requests are refused")
            return False
        self._waiting.pop(connection, None)
        return True

    def wait(self, connection: Connection) -> None:
        """Its request is answered: it waits again, or is about to end."""
        if connection in self._open:
            self._waiting[connection] = None

    def leave(self, connection: Connection) -> None:
        """It has ended."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def _say(self, what: str) -> None:
        now = time.monotonic()
        if now - self._said_at >= SAY_AGAIN_S:
            self._said_at = now
            log.warning(
                "%d HTTP connections are open, that is the limit: %s", len(self._open), what
            )


def is_probe(head: Head) -> bool:
    """Whether a request only asks how the server is."""
    return head.method in {"GET", "HEAD"} and _PROBES.fullmatch(head.path) is not None


def max_connections(wanted: int) -> int:
    """`wanted` HTTP connections, if the process may open so many files; 0 is as many as it may."""
    possible = _possible_connections()
    if possible is None:
        return max(LEAST, wanted or MOST)
    possible = max(LEAST, possible - max_grpc_connections())
    if wanted > possible:
        log.warning(
            "server.max_connections is %d, but the limit of open files leaves %d", wanted, possible
        )
    return max(LEAST, min(wanted or MOST, possible))


def max_grpc_connections() -> int:
    """gRPC connections, each of which carries many calls: a quarter of all."""
    possible = _possible_connections()
    return MOST_GRPC if possible is None else max(LEAST // 2, min(MOST_GRPC, possible // 4))


def _possible_connections() -> int | None:
    """Connections that the limit of open files allows; None without a limit."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return None
    return max(LEAST, files - max(RESERVED_FILES, files // 4))


def raise_file_limit() -> None:
    """Let the process open as many files as it may: the usual 1,024 of a shell or a container
    runtime are for programs that call `select`. No further than anybody needs, since some programs
    that are started from here close every number up to their limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class ConnectionDeadline:
    """Calls `passed` once the last deadline that was set is over. Event loop only.

    A later deadline leaves the loop's timer where it is: when that fires too early, it is set anew.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        """From now on it is over in `seconds`."""
        self._at = self._loop.time() + seconds
        if self._timer is not None and self._timer_at > self._at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._arm(self._at)

    def clear(self) -> None:
        """From now on there is none. The timer stays: most often the next deadline is later."""
        self._at = None

    def end(self) -> None:
        """There will be none any more."""
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
        self._passed()


class SlowReaderTimeout:
    """Looks at what one transport still has to send, from `begin` until `end`. Event loop only.

    A timeout of 0 is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.WriteTransport,
        timeout_s: float,
        stalled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_s = timeout_s
        self._stalled = stalled
        self._least = int(MIN_BYTES_PER_S * timeout_s)
        self._size = 0  # bytes that were to be sent when the time began
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is something to send; called again it changes nothing."""
        if self._timer is None and self._timeout_s > 0:
            self._size = self._transport.get_write_buffer_size()
            self._since = self._loop.time()
            self._arm()

    def end(self) -> None:
        """Nothing that anybody waits for is left to send."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        size, now = self._transport.get_write_buffer_size(), self._loop.time()
        if size == 0:
            return
        if self._size - size >= self._least:
            self._size, self._since = size, now
        elif now - self._since >= self._timeout_s:
            log.info("a caller took less than %d bytes in %g s", self._least, self._timeout_s)
            self._stalled()
            return
        self._size = max(self._size, size)
        self._arm()
