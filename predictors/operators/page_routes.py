"""The routes of the playground: its page at `/` and `/playground`, and its files below that."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.errors import NotFound
from predictors.playground.files import FOLDER, HEADERS, INDEX, PageFile, read_page
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.responses import Response, json_response
from predictors.settings import ServerSettings

HTML = "text/html"


def page_routes(settings: ServerSettings) -> list[BaseRoute]:
    """None where the page is off. `/` stays the liveness message for who accepts no HTML."""
    if not is_page_on(settings):
        return []
    page = _Page(read_page())
    found = (
        ("/", page.root),
        ("/playground", page.index),
        ("/playground/", page.without_slash),
        ("/playground/{file}", page.file),
    )
    return [Route(path, PlainEndpoint(answer), methods=["GET"]) for path, answer in found]


def is_page_on(settings: ServerSettings) -> bool:
    """`auto` is on where only this machine reaches the server."""
    if settings.playground != "auto":
        return settings.playground == "on"
    try:
        return ipaddress.ip_address(settings.host.strip("[]")).is_loopback
    except ValueError:
        return settings.host == "localhost"


class _Page:
    """The handlers. Event loop only."""

    def __init__(self, files: Mapping[str, PageFile]) -> None:
        self._files = files

    async def root(self, request: Request) -> Response:
        vary = ("vary", "accept")
        if HTML in request.headers.get("accept", "").lower():
            return _answer(request, self._files[INDEX], vary)
        alive = json_response({"status": "alive"})
        return Response(alive.body, headers=(*alive.headers, vary))

    async def index(self, request: Request) -> Response:
        return _answer(request, self._files[INDEX])

    async def without_slash(self, request: Request) -> Response:
        """The page's relative addresses would lead elsewhere below `/playground/`."""
        return Response(b"", 308, (("location", "../playground"), *HEADERS))

    async def file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name == INDEX or name not in self._files:
            raise NotFound(f"there is no file {FOLDER + name[:64]!r}")
        return _answer(request, self._files[name])


def _answer(request: Request, file: PageFile, *more: tuple[str, str]) -> Response:
    headers = (("etag", file.etag), *HEADERS, *more)
    if file.is_known(request.headers.get("if-none-match", "")):
        return Response(b"", 304, headers)
    return Response(file.body, headers=(("content-type", file.media_type), *headers))
