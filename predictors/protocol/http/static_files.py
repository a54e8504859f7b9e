"""The files of a web page that ships with the package, served from memory.

Addresses are looked up by name, so none can lead out of the folder. Pages refer to their files
relatively and so work behind a path prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.errors import NotFound
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.responses import Response

INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
"""By the end of a file's name. Other files are not served."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""The page's own files and the server it came from, and no text that is run as a script."""
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),  # asked for again, and answered with 304
)
_MAX_TAGS = 1024  # characters of `If-None-Match` that are read


class StaticPage:
    """`INDEX` of `folder` at `path`, such as `/docs`, and its other files below it, without
    subfolders. Event loop only."""

    def __init__(self, path: str, folder: Traversable, left_out: bytes = b"") -> None:
        """`left_out`: lines of `INDEX` with this text are not served."""
        self._path = path
        files = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
        if left_out:
            lines = files[INDEX].splitlines(keepends=True)
            files[INDEX] = b"".join(line for line in lines if left_out not in line)
        self._found: Mapping[str, tuple[bytes, str, str]] = {
            name: (body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            for name, body in files.items()
            if (kind := TYPES.get(name[name.rfind(".") :])) is not None
        }

    def routes(self) -> list[BaseRoute]:
        """With a slash or a name at its end, the page's relative references would lead below
        themselves, so those addresses are redirects to the other."""
        return [
            Route(self._path, PlainEndpoint(self._index), methods=["GET"]),
            Route(f"{self._path}/", PlainEndpoint(self._to_page), methods=["GET"]),
            Route(f"{self._path}/{{file}}", PlainEndpoint(self._file), methods=["GET"]),
        ]

    async def _index(self, request: Request) -> Response:
        return self.answer(request, INDEX)

    async def _to_page(self, request: Request) -> Response:
        return Response(b"", 307, (("location", f"../{self._path.rpartition('/')[2]}"),))

    async def _file(self, request: Request) -> Response:
        name = request.path_params["file"]
        return await self._to_page(request) if name == INDEX else self.answer(request, name)

    def answer(self, request: Request, name: str, *more: tuple[str, str]) -> Response:
        """A file, with `more` headers, or 304. Raises `NotFound`."""
        found = self._found.get(name)
        if found is None:
            raise NotFound(f"{self._path} has no such file")
        body, kind, tag = found
        headers = (*HEADERS, *more, ("etag", tag))
        if _has_tag(request.headers.get("if-none-match", ""), tag):
            return Response(b"", 304, headers)
        return Response(body, 200, (("content-type", kind), *headers))


def _has_tag(asked: str, tag: str) -> bool:
    """RFC 9110, 13.1.2: `*`, or a list with the tag, weak or not."""
    tags = [each.strip().removeprefix("W/") for each in asked[:_MAX_TAGS].split(",")]
    return tags == ["*"] or tag in tags
