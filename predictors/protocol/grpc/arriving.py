"""The messages of gRPC calls that are still arriving, and how many of them there may be.

gRPC keeps the parts of a message in memory of its own and tells no size before the last one. So
each message that does not arrive at once counts as one of the largest size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import lru_cache, partial
from typing import Any, TypeVar

import grpc

from predictors.errors import DeadlineExceeded, Overloaded, QuotaExceeded, ServingError
from predictors.protocol.bytes_in_flight import RETRY_AFTER_S
from predictors.protocol.grpc.unread_answers import take_error
from predictors.protocol.http.bodies import BODY_TIMEOUT_S

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
    a part of it is there. It gives way to others, but not while a request of it is in progress.
    """

    def __init__(self, most: int, most_of_one: int = 0) -> None:
        self.most = most
        self._most_of_one = most_of_one or max(1, most // 2)
        self._places: dict[Place, None] = {}  # the longest held first
        # of messages that may still come at once, until when; one timer for all of them
        self._new: dict[asyncio.Future[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._end_reason: ServingError | None = None
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._places)

    def stop_reading(self, reason: ServingError) -> None:
        """End every wait with `reason`, for good: also those that would begin later."""
        self._end_reason = reason
        for place in list(self._places):
            self._end(place, reason)

    async def reserve(self, caller: str, is_busy: Callable[[], bool]) -> Place | None:
        """A place for the next message of a stream with requests in progress, once there is one;
        None as soon as the stream is not busy any more. It is to be read then."""
        while is_busy():
            if self._has_room(caller):
                place = Place(caller, is_busy)
                self._places[place] = None
                return place
            self._changed.clear()
            await self._changed.wait()
        return None

    def note_change(self) -> None:
        """A stream is not busy any more."""
        self._changed.set()

    def _has_room(self, caller: str) -> bool:
        of_caller = sum(each.caller == caller for each in self._places)
        is_full = len(self._places) >= self.most or of_caller >= self._most_of_one
        return not is_full and self._end_reason is None

    async def read(
        self,
        receive: Receive[T],
        name_caller: Callable[[], str],
        *,
        may_wait: bool = False,
        reserved: Place | None = None,
    ) -> T | None:
        """The next message of a call, by `receive`; None after the last. `name_caller` is called if
        it needs a place, and has none `reserved`. With `may_wait` the message may come at any time.

        Raises `Overloaded` if there is no place, `QuotaExceeded` if this caller has as many as it
        may, `DeadlineExceeded` after a minute, and the reason given to `stop_reading`.
        """
        loop = asyncio.get_running_loop()
        # a task: gRPC loses the memory of a message that arrives while its reader is cancelled
        reading = loop.create_task(receive())
        over = loop.create_future()
        reading.add_done_callback(partial(_look_at, over))
        self._new[over] = loop.time() + AT_ONCE_S
        if self._timer is None:
            self._timer = loop.call_later(AT_ONCE_S, self._look_at_new)
        try:
            try:
                await over  # as `asyncio.wait` with a timeout, in half of its time
            finally:
                del self._new[over]
            if not reading.done():
                is_busy = _never if may_wait else None
                await self._wait(reading, reserved or Place(name_caller(), is_busy))
        finally:
            if reserved is not None:
                self._leave(reserved)
        return reading.result()

    def _look_at_new(self) -> None:
        """Timer: end the first wait of messages that did not come at once."""
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        for over, until in self._new.items():  # the oldest first
            if until > now:
                self._timer = loop.call_at(until, self._look_at_new)
                return
            _set(over)

    async def _wait(self, reading: asyncio.Future[T | None], place: Place) -> None:
        """Return once the message is there."""
        try:
            if place not in self._places and not place.stopped.done():
                self._take(place)
        except ServingError:
            await asyncio.wait((reading,), timeout=AGAIN_S)
            if reading.done():
                return
            raise
        longest_s = None if place.is_of_stream else BODY_TIMEOUT_S
        both = (reading, place.stopped)
        try:
            await asyncio.wait(both, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(place)
        if reading.done():
            return
        if place.stopped.done():
            raise place.stopped.result().with_traceback(None)  # it may be that of many
        raise DeadlineExceeded(f"the message took longer than {BODY_TIMEOUT_S:g} s")

    def _take(self, place: Place) -> None:
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

    def _make_room(self, places: list[Place]) -> bool:
        """End the wait of the idle stream that has waited longest; False if none of them is one."""
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

    def _end(self, place: Place, reason: ServingError) -> None:
        if not place.stopped.done():
            place.stopped.set_result(reason)
        self._leave(place)

    def _leave(self, place: Place) -> None:
        self._places.pop(place, None)
        self._changed.set()


class Place:
    """One message that is waited for: a stream's next one, if `is_busy` tells whether the stream
    has requests in progress."""

    def __init__(self, caller: str, is_busy: Callable[[], bool] | None) -> None:
        self.caller = caller
        self.is_of_stream = is_busy is not None
        self._is_busy = is_busy
        self.stopped: asyncio.Future[ServingError] = asyncio.get_running_loop().create_future()
        """Has the reason for which the message is not waited for any longer."""

    @property
    def gives_way(self) -> bool:
        return self._is_busy is not None and not self._is_busy()


class StreamMessages:
    """The messages of a stream, as they come. Raises as `ArrivingMessages.read`, and the `refusal`
    of one that is not read."""

    def __init__(
        self,
        arriving: ArrivingMessages,
        receive: Receive[Any],
        name_caller: Callable[[], str],
        refusal: ServingError | None = None,
    ) -> None:
        self._refusal = refusal
        self._num_open = 0
        self._arriving = arriving
        self._receive = receive
        self._name_caller = lru_cache(maxsize=1)(name_caller)

    def __aiter__(self) -> StreamMessages:
        return self

    async def __anext__(self) -> Any:
        if self._refusal is not None:
            raise self._refusal
        arriving, reserved = self._arriving, None
        if self.is_busy():
            reserved = await arriving.reserve(self._name_caller(), self.is_busy)
        given = self._receive, self._name_caller
        found = await arriving.read(*given, may_wait=True, reserved=reserved)
        if found is None:
            raise StopAsyncIteration
        self._num_open += 1
        return found

    def is_busy(self) -> bool:
        """True while a message is not answered."""
        return self._num_open > 0

    def answered(self) -> None:
        """The last part of a message's answer was sent."""
        self._num_open = max(0, self._num_open - 1)
        if not self.is_busy():
            self._arriving.note_change()


async def receive_message(context: Any) -> Any:
    """The next message of a call's context; None after the last. gRPC's iterator of messages would
    be a generator that is left before its end, for which asyncio makes a task."""
    found = await context.read()
    return None if found is grpc.aio.EOF else found


def _never() -> bool:
    return False


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _look_at(over: asyncio.Future[None], reading: asyncio.Future[Any]) -> None:
    """Set `over`, and take the error of a reading whose call has ended, which asyncio would log."""
    _set(over)
    take_error(reading)
