"""The field `coordinates` of a chat: what the numbers of its `boxes` count."""

from __future__ import annotations

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import one_of

AS_SAID, ORIGINAL, NORMALIZED = "model", "original", "normalized_1000"
COORDINATES = (AS_SAID, ORIGINAL, NORMALIZED)
THOUSAND = 1000
coordinates_rule = one_of(*COORDINATES)


def asked_coordinates(value: str | None) -> str | None:
    """The value of a request, None for `model`, which asks for nothing. Raises `InvalidRequest`."""
    if value is not None and value not in COORDINATES:
        choices = ", ".join(COORDINATES)
        raise InvalidRequest(f"coordinates must be one of {choices}", param="coordinates")
    return None if value == AS_SAID else value
