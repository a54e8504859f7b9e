"""The files of the playground: one static page, its styles and its modules, as they are sent.

They are read once, and no path of the disk is made from a request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

FOLDER = "playground/"
"""Where the page asks for its files, relative to itself, so that it works behind a path prefix."""
INDEX = "index.html"
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = (
    ("cache-control", "no-cache"),  # asked for again with the ETag, so an update is seen at once
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file with its media type and its entity tag, which is quoted and strong."""

    body: bytes
    media_type: str
    etag: str

    def is_known(self, if_none_match: str) -> bool:
        """The client's `If-None-Match` names this version; `*` and weak tags count."""
        tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
        return any(tag in ("*", self.etag) for tag in tags)


def read_page() -> Mapping[str, PageFile]:
    """Every file of the page by name, `index.html` among them."""
    found = {}
    for each in sorted(files("predictors.playground").joinpath("page").iterdir(), key=str):
        suffix = each.name.rpartition(".")[2]
        if suffix in TYPES:
            body = each.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[each.name] = PageFile(body, TYPES[suffix], etag)
    return found
