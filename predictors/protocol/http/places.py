"""How many connections may be open, and who makes room when there are more.

File descriptors run out before memory does, and then nobody gets in, probes neither. So there is a
limit below theirs: whoever has waited longest without a request is closed for a newcomer, never one
whose request is being answered. The last places are kept for probes.
"""

from __future__ import annotations

import logging
import re
import resource
import time
from collections import OrderedDict
from typing import Protocol

from predictors.protocol.http.heads import Head

log = logging.getLogger(__name__)

MOST = 8192  # connections, where nobody says how many
MOST_GRPC = 1024
LEAST = 8
RESERVED_FILES = 64  # descriptors, or a quarter: for models, logs, threads and processes
MAX_FILES = 65_536
SAY_AGAIN_S = 60.0

_PROBES = re.compile(
    rb"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready"
)


class Connection(Protocol):
    """A connection that takes a place."""

    def abort(self) -> None:
        """End now."""


class Places:
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
