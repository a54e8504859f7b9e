"""Refusals name a field as the caller spelt it, where a route reads another name first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager

from predictors.errors import InvalidRequest, PromptTooLong


@contextmanager
def respelling(spelt: Mapping[str, str]) -> Iterator[None]:
    """Names the field of a refusal as the caller did, in its message as well; `spelt` is the
    caller's name by ours."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is not None and error.param in spelt:
            error.param = spelt[error.param]
            # clients know a prompt that is too long by the beginning of its message
            if error.param not in error.message and not isinstance(error, PromptTooLong):
                error.message = f"{error.param}: {error.message}"
        raise


async def respelt_events(
    events: AsyncIterator[bytes], spelt: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """The events of `events`. A refusal names its field as in `respelling`."""
    with respelling(spelt):
        async with aclosing(events):  # type: ignore[type-var]
            async for each in events:
                yield each
