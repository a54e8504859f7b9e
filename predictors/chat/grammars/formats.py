"""Formats of a schema's texts that the library lets come too freely, as patterns and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_HOSTNAME = 253  # characters in all; the library bounds each part alone
_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
WRITTEN: Final[Mapping[str, str]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
}
"""Patterns of formats of which the library has 29 February in every year, and 60 seconds in every
minute."""


def with_formats(read: dict[str, Any]) -> dict[str, Any]:
    """The schema with the patterns of `WRITTEN` in place of formats, and the length of names."""
    if read.get("format") == "hostname":
        return read | {"maxLength": min(MAX_HOSTNAME, read.get("maxLength", MAX_HOSTNAME))}
    pattern = WRITTEN.get(read.get("format", ""))
    if pattern is None:
        return read
    rest = {name: value for name, value in read.items() if name != "format"}
    if "pattern" not in rest:
        return rest | {"pattern": pattern}
    return rest | {"allOf": [*rest.get("allOf", ()), {"pattern": pattern}]}
