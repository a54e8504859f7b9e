"""The routes of what describes the server: `/openapi.json`, the page `/docs` and `/proto`.

The document is made in a thread and kept until a model or one of its limits changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from importlib.resources import files

import orjson
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.protocol.http.access import is_offered
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.exchange import CALL_KEY
from predictors.protocol.http.responses import Response
from predictors.protocol.http.static_files import StaticPage
from predictors.protocol.openapi.document import openapi_document
from predictors.protocol.openapi.keys import MAX_PAGES, with_keys
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served
from predictors.protocol.v2.proto_file import inference_file, proto_text

DOCS, PROTO = "/docs", "/proto"


def openapi_routes(registry: Registry, others: Iterable[BaseRoute] = ()) -> list[BaseRoute]:
    """`others` are the routes that are served beside these."""
    page, settings = OpenApiPage(registry), registry.settings
    routes: list[BaseRoute] = [Route("/openapi.json", PlainEndpoint(page.answer), methods=["GET"])]
    if is_offered(settings.server.docs, settings):
        routes += StaticPage(DOCS, files("predictors.protocol.openapi") / "page").routes()
    if settings.server.grpc_port >= 0:
        routes.append(Route(PROTO, PlainEndpoint(proto_file), methods=["GET"]))
    page.paths = frozenset(each.path for each in (*routes, *others) if isinstance(each, Route))
    return routes


async def proto_file(request: Request) -> Response:
    """The gRPC protocol of the inference service."""
    name = inference_file().name
    return Response(
        proto_text().encode("ascii"),
        headers=(
            ("content-type", "text/plain; charset=utf-8"),
            ("content-disposition", f'inline; filename="{name}"'),
        ),
    )


class OpenApiPage:
    """The document as bytes, per set of models that a caller may use. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.paths: frozenset[str] = frozenset()
        self._has_urls = bool(registry.settings.server.public_url)
        self._making = asyncio.Lock()
        self._pages: dict[tuple[str, ...], tuple[object, bytes]] = {}

    async def answer(self, request: Request) -> Response:
        models = self._registry.names_for(request.scope[CALL_KEY])
        made_of = [(n, dict(x.get_parameters()), dict(x.get_limits())) for n, x in models.items()]
        async with self._making:  # those who wait find what the first one made
            known = self._pages.get(tuple(models))
            if known is None or known[0] != made_of:
                keyed = self._registry.callers.keys is not None
                body = await self._registry.in_thread(
                    _encoded, models, self._has_urls, self.paths, keyed
                )
                if len(self._pages) >= MAX_PAGES:
                    self._pages.clear()
                known = self._pages[tuple(models)] = made_of, body
        return Response(known[1])


def _encoded(
    models: Mapping[str, Served], has_urls: bool, paths: frozenset[str], has_keys: bool
) -> bytes:
    document = openapi_document(models, has_urls=has_urls, others=paths)
    return orjson.dumps(with_keys(document) if has_keys else document)
