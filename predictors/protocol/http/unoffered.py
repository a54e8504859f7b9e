"""Routes of OpenAI's API that clients look for and this server does not have, each with the reason
and what to do instead. `docs/not-offered.md` says more.
"""

from __future__ import annotations

from collections.abc import Mapping

_NOT_KEPT = "nothing is kept between requests; send them all at once, they share steps"
REASONS: Mapping[str, str] = {
    "audio": "no served model hears or speaks",
    "batches": _NOT_KEPT,
    "embeddings": "no served model makes embeddings",
    "files": _NOT_KEPT,
    "moderations": "no served model judges texts; what is drawn can be checked by the setting "
    "PREDICTORS_FLUX_CHECKER",
}
"""By the first part of the path after `/v1/`."""


def reason_of(path: str) -> str:
    """The end of the sentence that there is no such route: a colon and the reason, or empty."""
    name = path.removeprefix("/openai").removeprefix("/v1/").partition("/")[0]
    reason = REASONS.get(name) if "/v1/" in path else None
    return f": {reason}" if reason else ""
