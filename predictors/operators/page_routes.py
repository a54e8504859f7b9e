"""The routes of the playground: its page at `/` and `/playground`, and its files below that."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.protocol.addresses import is_loopback
from predictors.protocol.http.access import is_offered
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.http.static_files import INDEX, StaticPage
from predictors.settings import ServerSettings, Settings

HTML = "text/html"
DOCS_LINK = b'href="docs"'
"""In the line of the page that leads to `/docs`, which some servers do not have."""


def page_routes(settings: Settings) -> list[BaseRoute]:
    """None where the page is off. `/` stays the liveness message for who accepts no HTML."""
    if not is_page_on(settings.server):
        return []
    folder = files("predictors.playground").joinpath("page")
    has_docs = is_offered(settings.server.docs, settings)
    page = StaticPage("/playground", folder, b"" if has_docs else DOCS_LINK)

    async def root(request: Request) -> Response:
        vary = ("vary", "accept")
        if HTML in request.headers.get("accept", "").lower():
            return page.answer(request, INDEX, vary)
        alive = json_response({"status": "alive"})
        return Response(alive.body, headers=(*alive.headers, vary))

    return [Route("/", PlainEndpoint(root), methods=["GET"]), *page.routes()]


def is_page_on(settings: ServerSettings) -> bool:
    """`auto` is on where only this machine reaches the server."""
    if settings.playground != "auto":
        return settings.playground == "on"
    return is_loopback(settings.host.strip("[]"))
