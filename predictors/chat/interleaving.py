"""The deltas of several rows of one request, in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from predictors.chat.request import ChatDelta
from predictors.chat.work import ChatWork
from predictors.serving.submission import Submission


async def interleaved(
    submissions: Sequence[Submission[ChatWork, ChatDelta]],
) -> AsyncIterator[tuple[int, Sequence[ChatDelta]]]:
    """The deltas of all rows as they come, with the row's index; raises the first failure."""
    if len(submissions) == 1:
        async with aclosing(submissions[0].batches()) as batches:  # type: ignore[type-var]
            async for deltas in batches:
                yield 0, deltas
        return
    streams = [row.batches() for row in submissions]
    pending = {asyncio.create_task(_next(stream)): i for i, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, found = pending.pop(task), task.result()
                if found is not None:
                    yield index, found
                    pending[asyncio.create_task(_next(streams[index]))] = index
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]


async def _next(stream: AsyncIterator[Sequence[ChatDelta]]) -> Sequence[ChatDelta] | None:
    return await anext(stream, None)
