"""Counts the gRPC messages that a running server waits for, and tells a test when that changes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from predictors.protocol.grpc.arriving import ArrivingMessages
from tests.http.echo import PATIENCE_S, Running
from tests.http.http2 import Connection


def end_at_once(messages: ArrivingMessages, loop: asyncio.AbstractEventLoop | None) -> None:
    """Whatever `messages` still wait for on their loop has not come at once."""
    assert loop is not None

    async def end() -> None:
        messages._new = dict.fromkeys(messages._new, 0.0)
        if messages._timer is not None:
            messages._timer.cancel()
        messages._look_at_new()

    asyncio.run_coroutine_threadsafe(end(), loop).result(PATIENCE_S)


class Places:
    """Tells when the number of messages that are waited for has changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self.running: Running | None = None
        take, wait = ArrivingMessages._take, ArrivingMessages._wait
        reserve = ArrivingMessages.reserve

        def taken(messages: ArrivingMessages, place: Any) -> None:
            take(messages, place)
            self._tell()

        async def waited(messages: ArrivingMessages, reading: Any, place: Any) -> None:
            try:
                await wait(messages, reading, place)
            finally:
                self._tell()

        async def reserved(messages: ArrivingMessages, *given: Any) -> Any:
            found = await reserve(messages, *given)
            self._tell()
            return found

        monkeypatch.setattr(ArrivingMessages, "reserve", reserved)
        monkeypatch.setattr(ArrivingMessages, "_take", taken)
        monkeypatch.setattr(ArrivingMessages, "_wait", waited)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        assert self.running is not None
        return len(self.running.server.registry.arriving)

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self) == count, PATIENCE_S), len(self)

    def end_at_once(self) -> None:
        """Whatever is still waited for has not come at once."""
        assert self.running is not None
        end_at_once(self.running.server.registry.arriving, self.running.server._loop)

    def hold(self, connection: Connection, path: str, stream: int, part: bytes) -> None:
        """Begin a call, and return once it has a place."""
        before = len(self)
        connection.open(path, stream)
        if part:
            connection.part(part, stream)
        self.wait(before + 1)
