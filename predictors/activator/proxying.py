"""The path of a request through the activator, whatever its protocol: counted, refused while the
process ends, held until the model can be reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from predictors import metrics
from predictors.activator.waking import WaitingRoom
from predictors.errors import Cancelled, Draining, ServingError
from predictors.protocol.call import Call
from predictors.settings import ActivatorSettings

T = TypeVar("T")
PROXIED, FAILED = "proxied", "failed"


class Proxying:
    """Requests in progress, and whether new ones are taken. Event loop only."""

    def __init__(self, model: str, settings: ActivatorSettings, room: WaitingRoom) -> None:
        metrics.register_activator(model)
        self._model = model
        self._max_wait_s = settings.max_wait_s
        self.room = room
        self.is_draining = False
        self._num = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_progress = metrics.activator_requests_in_progress.labels(model)

    @property
    def num_in_progress(self) -> int:
        return self._num

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is in progress; False if that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def request(self, protocol: str) -> Iterator[None]:
        """Count one request and its outcome. Raises `Draining` while the process ends."""
        outcome = FAILED
        self._num += 1
        self._idle.clear()
        self._in_progress.inc()
        try:
            if self.is_draining:
                raise Draining("the activator is shutting down; try again, another one may answer")
            yield
            outcome = PROXIED
        except ServingError as error:
            known = error.reason in metrics.ACTIVATOR_OUTCOMES
            outcome = error.reason if known else FAILED
            raise
        except asyncio.CancelledError:
            outcome = Cancelled.reason
            raise
        finally:
            self._num -= 1
            self._in_progress.dec()
            metrics.activator_requests_total.labels(self._model, protocol, outcome).inc()
            if not self._num:
                self._idle.set()

    async def reach(
        self,
        call: Call,
        attempt: Callable[[], Awaitable[T | None]],
        beside: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """The result of `attempt`; while that is None, for want of a connection, it is held.

        While requests are held already, this one does not try before them. `beside` runs while the
        request is held; what it raises ends the wait. Raises as `WaitingRoom.until_ready`, and
        `InvalidRequest` for a bad timeout in the headers.
        """
        came = time.monotonic()
        found = None if self.room.is_waking else await attempt()
        if found is not None:
            return found
        call.read_deadline(self._max_wait_s, lambda: came)
        call.tighten(self._max_wait_s, lambda: came)
        deadline = call.deadline or came + self._max_wait_s
        while found is None:
            await first_of(self.room.until_ready(deadline, came), beside() if beside else None)
            found = await attempt()
        return found


async def first_of(main: Awaitable[T], beside: Awaitable[None] | None) -> T:
    """The value of `main`. If `beside` ends first, which it does by raising, its error; the other
    one is cancelled and has ended on return."""
    if beside is None:
        return await main
    wanted, watching = asyncio.ensure_future(main), asyncio.ensure_future(beside)
    try:
        await asyncio.wait([wanted, watching], return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            watching.result()
        return await wanted
    finally:
        wanted.cancel()
        watching.cancel()
        await asyncio.gather(wanted, watching, return_exceptions=True)
