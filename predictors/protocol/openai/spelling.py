"""Refusals name a field as the caller spelt it, where a route reads another name first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from predictors.errors import InvalidRequest


def respell(error: InvalidRequest, spelt: Mapping[str, str]) -> None:
    """Name the field of a refusal as the caller did; `spelt` is the caller's name by ours."""
    if error.param is not None:
        error.param = spelt.get(error.param, error.param)


async def respelt_events(
    events: AsyncIterator[bytes], spelt: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """The same events; a refusal names its field as `respell`."""
    try:
        async with aclosing(events):  # type: ignore[type-var]
            async for each in events:
                yield each
    except InvalidRequest as error:
        respell(error, spelt)
        raise
