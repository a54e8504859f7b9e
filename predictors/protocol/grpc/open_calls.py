"""The open gRPC calls of one server: how many there may be, and the wait for their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from predictors.errors import Overloaded
from predictors.protocol.bytes_in_flight import RETRY_AFTER_S
from predictors.protocol.grpc.unread_answers import (
    ENDLESS,
    OpenCall,
    UnreadAnswers,
    answers_of_task,
    peer_of_task,
)

MOST_CALLS = 4096
"""Calls that are open at a time, of all connections. Each takes about 60 KiB and its messages."""
PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady", "Check"})
"""Methods that are answered at that limit too."""


class OpenCalls:
    """The calls of one server, `most` at a time. Event loop only."""

    def __init__(self, most: int, write_timeout_s: float) -> None:
        self._most = most
        self._open: dict[Any, OpenCall] = {}  # by their contexts
        self.answers = UnreadAnswers(write_timeout_s, self._open)
        self._ended: asyncio.Event | None = None  # at the next end of a call, where somebody waits

    def begin(self, name: str, context: Any) -> Overloaded | None:
        """Count a call until its last byte is sent or its caller has left; the reason to refuse it,
        if there is one."""
        peer: str = context.peer()
        peer_of_task.set(peer)
        self._open[context] = OpenCall(name, peer)
        context.add_done_callback(self._end)
        answers_of_task.set(self.answers)
        if len(self._open) <= self._most or name in PROBES:
            return None
        return Overloaded(
            f"{self._most} gRPC calls are in progress already, which is the limit; try again later",
            retry_after_s=RETRY_AFTER_S,
        )

    async def wait_answered(self, longest_s: float) -> None:
        """Wait until the calls that are open now have ended, except endless ones."""
        asked = {each for each, call in self._open.items() if call.name not in ENDLESS}
        await self._wait(lambda: asked.isdisjoint(self._open), longest_s)

    async def wait_none(self, longest_s: float) -> None:
        """Wait until no call is open."""
        await self._wait(lambda: not self._open, longest_s)

    async def _wait(self, is_over: Callable[[], bool], longest_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while not is_over():
                    self._ended = asyncio.Event()
                    await self._ended.wait()
        self._ended = None

    def _end(self, context: Any) -> None:
        del self._open[context]
        self.answers.end(context)
        if self._ended is not None:
            self._ended.set()
