"""Reads V2 parameters that are JSON in a text: V2's parameters are scalars, so lists and objects of
OpenAI's fields come that way.
"""

from __future__ import annotations

from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json


def parse_json_text(name: str, text: str, most: int, example: str = "") -> Any:
    """The value of parameter `name`, whose `text` may have `most` characters. Raises
    `InvalidRequest`, which shows the `example`."""
    if len(text) > most:
        message = f"{name} has {len(text)} characters; at most {most} are taken"
        raise InvalidRequest(message, param=name)
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"))
    except InvalidRequest as error:
        message = error.message.replace("the body", name)
        if example:
            message = f"{message}; it is a text such as '{example}'"
        raise InvalidRequest(message, param=name) from error
