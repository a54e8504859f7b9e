"""The messages of gRPC calls that are still arriving, and how many of them there may be.

gRPC keeps the parts of a message in memory of its own and tells no size before the last one. So
each message that does not arrive at once counts as one of the largest size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import grpc

from predictors.errors import DeadlineExceeded, Overloaded, QuotaExceeded, ServingError
from predictors.protocol.http.bodies import BODY_TIMEOUT_S, RETRY_AFTER_S

AT_ONCE_S = 0.25
"""A message that takes no longer needs no place: in this time there arrives no more than the
network brings, however many calls there are."""
AGAIN_S = 0.25  # more for one that finds no place: a busy loop may be late to see it

T = TypeVar("T")
Receive = Callable[[], Coroutine[Any, Any, T | None]]


class ArrivingMessages:
    """At most `most` places for messages that take longer than `AT_ONCE_S`; one caller may have
    `most_of_one`, or half of them if that is not said. Event loop only.

    A stream that waits for its next message holds a place as well, since gRPC does not tell whether
    a part of it is there. It gives way to others.
    """

    def __init__(self, most: int, most_of_one: int = 0) -> None:
        self.most = most
        self._most_of_one = most_of_one or max(1, most // 2)
        self._places: dict[_Place, None] = {}  # the longest held first
        self._end_reason: ServingError | None = None

    def __len__(self) -> int:
        return len(self._places)

    def stop_reading(self, reason: ServingError) -> None:
        """End every wait with `reason`, for good: also those that would begin later."""
        self._end_reason = reason
        for place in list(self._places):
            self._end(place, reason)

    async def read(
        self, receive: Receive[T], name_caller: Callable[[], str], *, may_wait: bool = False
    ) -> T | None:
        """The next message of a call, by `receive`; None after the last. `name_caller` is called if
        it needs a place. With `may_wait` the message may come at any time.

        Raises `Overloaded` if there is no place, `QuotaExceeded` if this caller has as many as it
        may, `DeadlineExceeded` after a minute, and the reason given to `stop_reading`.
        """
        loop = asyncio.get_running_loop()
        # a task: gRPC loses the memory of a message that arrives while its reader is cancelled
        reading = loop.create_task(receive())
        over = loop.create_future()
        reading.add_done_callback(partial(_look_at, over))
        timer = loop.call_later(AT_ONCE_S, _set, over)
        try:
            await over  # as `asyncio.wait` with a timeout, in half of its time
        finally:
            timer.cancel()
        if not reading.done():
            await self._wait(reading, _Place(name_caller(), may_wait))
        return reading.result()

    async def _wait(self, reading: asyncio.Future[T | None], place: _Place) -> None:
        """Return once the message is there."""
        try:
            self._take(place)
        except ServingError:
            await asyncio.wait((reading,), timeout=AGAIN_S)
            if reading.done():
                return
            raise
        longest_s = None if place.gives_way else BODY_TIMEOUT_S
        both = (reading, place.stopped)
        try:
            await asyncio.wait(both, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._places.pop(place, None)
        if reading.done():
            return
        if place.stopped.done():
            raise place.stopped.result().with_traceback(None)  # it may be that of many
        raise DeadlineExceeded(f"the message took longer than {BODY_TIMEOUT_S:g} s")

    def _take(self, place: _Place) -> None:
        """Raises `Overloaded`, `QuotaExceeded`, and the reason given to `stop_reading`."""
        if self._end_reason is not None:
            raise self._end_reason.with_traceback(None)
        of_caller = [each for each in self._places if each.caller == place.caller]
        if len(of_caller) >= self._most_of_one:
            if not self._make_room(of_caller):
                raise QuotaExceeded(
                    f"{len(of_caller)} gRPC messages of this caller are arriving already, which is "
                    "the limit; send the whole message at once, or try again later"
                )
        elif len(self._places) >= self.most and not self._make_room(list(self._places)):
            raise Overloaded(
                f"{self.most} gRPC messages are arriving already, which is the limit; send the "
                "whole message at once, or try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._places[place] = None

    def _make_room(self, places: list[_Place]) -> bool:
        """End the wait of the stream that has waited longest; False if none of them is one."""
        longest = next((each for each in places if each.gives_way), None)
        if longest is None:
            return False
        self._end(
            longest,
            Overloaded(
                "so many gRPC messages are waited for that a stream had to end, and this one has "
                "waited longest; open it again when there is something to send",
                retry_after_s=RETRY_AFTER_S,
            ),
        )
        return True

    def _end(self, place: _Place, reason: ServingError) -> None:
        if not place.stopped.done():
            place.stopped.set_result(reason)
        self._places.pop(place, None)


class _Place:
    """One message that is waited for."""

    def __init__(self, caller: str, gives_way: bool) -> None:
        self.caller = caller
        self.gives_way = gives_way
        self.stopped: asyncio.Future[ServingError] = asyncio.get_running_loop().create_future()
        """Has the reason for which the message is not waited for any longer."""


async def receive_message(context: Any) -> Any:
    """The next message of a call's context; None after the last. gRPC's iterator of messages would
    be a generator that is left before its end, for which asyncio makes a task."""
    found = await context.read()
    return None if found is grpc.aio.EOF else found


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _look_at(over: asyncio.Future[None], reading: asyncio.Future[Any]) -> None:
    """Set `over`, and take the error of a reading whose call has ended, which asyncio would log."""
    _set(over)
    if not reading.cancelled():
        reading.exception()
