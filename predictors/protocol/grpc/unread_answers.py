"""Answers that gRPC still sends, and the end of those that their callers do not read.

gRPC sends as much as a caller's flow control allows, keeps the rest, and tells only when all of it
is sent. It can't end one call, so that a connection is closed whose callers read nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from predictors.errors import Cancelled
from predictors.protocol.grpc.connections import end_connections, read_peer
from predictors.protocol.http.connection_limits import CHECKS_PER_TIMEOUT

BYTES_PER_S = 256 * 1024
"""A message may take the timeout and its size by this. gRPC does not tell how much is taken."""
PATIENT_TIMEOUTS = 10
"""A connection is closed in spite of calls that are served on it after so many timeouts."""
ENDLESS = frozenset({"Watch"})
"""Methods that end when their caller leaves."""
GONE_S = 1.0  # for gRPC to cancel the task of a call whose caller has left

log = logging.getLogger(__name__)


def is_no_lost_caller_line(record: logging.LogRecord) -> bool:
    """False for the traceback that gRPC logs if a caller leaves while its answer is sent."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


logging.getLogger("grpc._cython.cygrpc").addFilter(is_no_lost_caller_line)

answers_of_task: ContextVar[UnreadAnswers] = ContextVar("answers_of_task")
"""Those of the server whose call the current task serves."""
peer_of_task: ContextVar[str] = ContextVar("peer_of_task")
"""gRPC's name of the peer whose call the current task serves, read when the call began. To ask a
call that has ended (`context.peer()`) crashes the process (gRPC 1.83), and its end may come before
word of it, or while its handler still runs."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """The method's name, and gRPC's name of the peer (`peer_of_task`)."""

    name: str
    peer: str


class UnreadAnswers:
    """The answers of one server's calls, which have `timeout_s` to be read; 0 is without a limit.
    Event loop only."""

    def __init__(self, timeout_s: float, open_calls: Mapping[Any, OpenCall]) -> None:
        """`open_calls` are by the calls' contexts."""
        self.port = 0  # the server's, set once it listens
        self._timeout_s = timeout_s
        self._open = open_calls
        self._until: dict[Any, float] = {}  # by contexts, as all below: the loop's time
        self._since: dict[Any, float] = {}  # when their time was over; they are open still
        self._limits: dict[Any, asyncio.Timeout] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[int] | None = None

    def begin(self, context: Any, size: int = 0) -> None:
        """The answer, or a part of it, is handed to gRPC."""
        if self._timeout_s <= 0 or context in self._since or context not in self._open:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s + size / BYTES_PER_S
        self._until[context] = until
        if self._timer is None:
            self._timer = loop.call_at(until, self._check)

    def end(self, context: Any) -> None:
        """The call has ended."""
        self._until.pop(context, None)
        self._since.pop(context, None)

    @asynccontextmanager
    async def limited(self, context: Any) -> AsyncIterator[None]:
        """Ends what it encloses, the method of a stream, once its caller has not read for too long.
        Raises `Cancelled` then."""
        limit = self._limits[context] = asyncio.timeout(None)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Cancelled(f"the caller did not read for {self._timeout_s:g} s") from None
        finally:
            self._limits.pop(context, None)

    async def write(self, context: Any, raw: bytes) -> None:
        """Send a message of a stream. Waits while the caller does not read. Raises `Cancelled` if
        the caller has left."""
        self.begin(context, len(raw))
        # a task: gRPC loses the memory of a message whose sender is cancelled
        writing = asyncio.ensure_future(context.write(raw))
        writing.add_done_callback(take_error)
        try:
            await asyncio.shield(writing)
        except grpc.aio.InternalError as error:
            await asyncio.sleep(GONE_S)
            raise Cancelled("the caller has left") from error
        finally:
            self._until.pop(context, None)

    def _check(self) -> None:
        """Timer: end what has had its time, and close connections."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for context in [each for each, until in self._until.items() if until <= now]:
            del self._until[context]
            self._since[context] = now
            log.info("a gRPC caller did not read its answer for %g s", self._timeout_s)
            if (limit := self._limits.get(context)) is not None:
                limit.reschedule(now)
        self._close_connections(now)
        if waiting := [*self._until.values(), *([now] if self._since else [])]:
            soonest = now + self._timeout_s / CHECKS_PER_TIMEOUT
            self._timer = loop.call_at(max(soonest, min(waiting)), self._check)

    def _close_connections(self, now: float) -> None:
        """Close those on which nothing else is served, and those that had patience enough."""
        if not self._since or (self._closing is not None and not self._closing.done()):
            return
        served = {
            read_peer(call.peer)
            for each, call in self._open.items()
            if each not in self._since and each not in self._until and call.name not in ENDLESS
        }
        patient_s = PATIENT_TIMEOUTS * self._timeout_s
        unread = {
            peer
            for each, since in self._since.items()
            if (peer := read_peer(self._open[each].peer)) not in served or now - since >= patient_s
        }
        if unread:
            work = asyncio.to_thread(end_connections, self.port, unread.__contains__)
            self._closing = asyncio.get_running_loop().create_task(work)


def take_error(task: asyncio.Future[Any]) -> None:
    """Task callback: asyncio would log the error of a task that is not awaited any more."""
    if not task.cancelled():
        task.exception()
