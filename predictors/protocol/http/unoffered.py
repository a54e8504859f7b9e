"""Routes that clients look for and this server does not have: the reason, or the route that was
meant. `docs/not-offered.md` says more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


BASES = ("/api", "/openai", "/v1", "/v2")
"""Beginnings of paths that clients put once too often, or leave out."""
MEANT: Mapping[str, str] = {
    **dict.fromkeys(("/healthz", "/livez", "/live", "/health/live"), "/v2/health/live"),
    **dict.fromkeys(("/readyz", "/ready", "/health/ready"), "/v2/health/ready"),
    **dict.fromkeys(("/redoc", "/swagger"), "/docs"),
}
"""Routes of the same purpose by the names that other servers give them."""
MOST_CHARACTERS = 200


def meant_route(path: str, served: Collection[str]) -> str:
    """A question for the one of `served` that a path comes nearest to, or empty."""
    rest = path.rstrip("/") if len(path) <= MOST_CHARACTERS else ""
    while base := next((each for each in BASES if rest.startswith(f"{each}/")), ""):
        rest = rest.removeprefix(base)
    tried = (MEANT.get(rest, ""), f"/v1{rest}", f"/v1{rest}s", rest)
    found = next((route for route in tried if route in served), "")
    return f"; did you mean {found}?" if found else ""
