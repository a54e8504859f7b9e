"""The events of the rows of one request as their chunks come: written to the response's connection
at once, or given out one after the other where that can't be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from predictors.chat.request import ChatDelta
from predictors.chat.work import ChatWork
from predictors.protocol.call import Call
from predictors.serving.submission import Submission

Encode = Callable[[int, Sequence[ChatDelta]], bytes]
"""The events for new deltas of a row, given its index; may be empty."""


class RowEvents:
    """To be iterated once. Event loop only.

    While the writer of `call` is open, news of a row go there in the callback that tells of them:
    to resume all coroutines of a request for each token takes as long as all else done for it.
    """

    def __init__(
        self, rows: Sequence[Submission[ChatWork, ChatDelta]], encode: Encode, call: Call
    ) -> None:
        self._rows = rows
        self._open = dict(enumerate(rows))
        self._encode = encode
        self._call = call
        self._news = asyncio.Event()
        self._failure: Exception | None = None

    async def items(self) -> AsyncIterator[bytes]:
        """The events that the call's writer did not take. Raises the first failure of a row, and
        cancels all rows however the iteration ends."""
        for row in self._rows:
            row.attach(self._on_news)
        try:
            while self._open:
                is_quiet = True
                for index in tuple(self._open):
                    if events := self._take(index):
                        is_quiet = False
                        yield events
                if is_quiet and self._open:
                    await self._news.wait()
                    self._news.clear()
                    self._raise_failure()
        finally:
            self._open.clear()  # nothing is written behind the end
            for row in self._rows:
                row.cancel()
                row.detach()  # or jobs and their pictures would wait for a garbage collection

    def _on_news(self) -> None:
        """Write the news of all rows, as far as the writer takes them; `items` does all else: the
        ends of rows, and failures, since others' news wait for the end of this callback."""
        try:
            if self._failure is None and self._are_written():
                return
        except Exception as error:  # noqa: BLE001
            self._failure = error
        self._news.set()

    def _are_written(self) -> bool:
        """False if something is left to do."""
        writer = self._call.writer
        for index, row in tuple(self._open.items()):
            if writer is None or not writer.is_open:
                return False
            if events := self._take(index):
                writer.write(events)
            if row.is_over:
                return False
        return True

    def _take(self, index: int) -> bytes:
        """The events of a row's news. Empty if there are none: the row tells of the next ones then,
        or is closed."""
        row = self._open[index]
        while deltas := row.take():
            if events := self._encode(index, deltas):
                return events
        if deltas is None:
            del self._open[index]
        return b""

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback refers to this frame
