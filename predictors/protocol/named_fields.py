"""Messages about a picture or a film of a request begin with the field that has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from predictors.errors import InvalidRequest


@contextmanager
def naming_field(param: str, row: int | None) -> Iterator[None]:
    """An `InvalidRequest` of the block, whose message goes on where a sentence began with the
    field's name, is raised with that name and the `row`."""
    try:
        yield
    except InvalidRequest as error:
        message = f"{param} {error.message}"
        raise type(error)(message, param=param, row=row) from error
