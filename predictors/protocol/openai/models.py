"""`GET /v1/models` and `/v1/models/{model}` for OpenAI's and KServe V1's clients, and all OpenAI
routes.

The two protocols share these addresses, so each answer has the fields of both. Knows the registry
only.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.errors import NotFound
from predictors.protocol.faults import fault_of
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.exchange import Response, json_response
from predictors.protocol.openai.chat import CHAT
from predictors.protocol.openai.edge import PREFIXES, endpoint, openai_body
from predictors.protocol.openai.images import IMAGES
from predictors.protocol.registry import Registry

OWNER = "vision-predictors"


def openai_routes(registry: Registry) -> list[BaseRoute]:
    """Every OpenAI route, under each prefix."""
    listing = Listing(registry)
    chat = endpoint(registry, CHAT, (IMAGES,))
    images = endpoint(registry, IMAGES, (CHAT,))
    routes: list[BaseRoute] = []
    for prefix in PREFIXES:
        routes += [
            Route(prefix + CHAT.route, chat, methods=["POST"]),
            Route(prefix + IMAGES.route, images, methods=["POST"]),
            Route(f"{prefix}/models", PlainEndpoint(listing.all), methods=["GET"]),
            Route(f"{prefix}/models/{{name}}", PlainEndpoint(listing.one), methods=["GET"]),
        ]
    return routes


class Listing:
    """What is served, and whether it is ready. Event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._created = int(time.time())  # Unix seconds, when this server began to serve them

    async def all(self, request: Request) -> Response:
        """`data` for OpenAI's clients, `models` for KServe V1's; models that still load are
        listed too.
        """
        names = list(self._registry.models)
        data = [self._card(name) for name in names]
        return json_response({"object": "list", "data": data, "models": names})

    async def one(self, request: Request) -> Response:
        """OpenAI's model object with V1's `name` and `ready`; 503 until ready, 404 if unknown."""
        name = request.path_params["name"]
        try:
            self._registry.find(name)
        except NotFound as error:
            fault = fault_of(error)
            return Response(openai_body(fault), fault.status)
        ready = await self._registry.is_ready(name)
        card = self._card(name) | {"name": name, "ready": ready}
        return json_response(card, 200 if ready else 503)

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": OWNER}
