"""The route `/metrics`: Prometheus text, or OpenMetrics for a client that accepts it."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.routing import Route

from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.exposition import Scraper
from predictors.protocol.http.responses import Response


def metrics_route() -> Route:
    """A route for one event loop."""
    return Route("/metrics", PlainEndpoint(_Scrapes().answer), methods=["GET"])


class _Scrapes:
    """One scrape runs at a time. Requests that come meanwhile share the next one. Event loop
    only."""

    def __init__(self) -> None:
        self._scraper = Scraper(REGISTRY)
        self._lock = asyncio.Lock()
        self._next: dict[str, asyncio.Task[Response]] = {}  # by the `Accept` header

    async def answer(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        next_one = self._next.get(accept)
        if next_one is None:
            next_one = self._next[accept] = asyncio.create_task(self._scrape_next(accept))
        return await asyncio.shield(next_one)

    async def _scrape_next(self, accept: str) -> Response:
        async with self._lock:
            del self._next[accept]
            # 3 ms with two models, 10 ms while engines compete for the interpreter's lock
            body, content_type = await asyncio.to_thread(self._scraper.scrape, accept)
            return Response(body, headers=(("content-type", content_type),))
