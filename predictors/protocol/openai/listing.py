"""The listing of models: its addresses are the same for OpenAI and for KServe V1."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request

from predictors.errors import Forbidden, NotFound
from predictors.protocol.faults import fault_of
from predictors.protocol.http.exchange import CALL_KEY
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.openai.operations import openai_body
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served

OWNER = "vision-predictors"


class Listing:
    """`GET /v1/models` and `/v1/models/{name}`, each answer with the fields of OpenAI and of KServe
    V1, which share these addresses. Event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._created = int(time.time())  # Unix seconds of the server's start

    async def all(self, request: Request) -> Response:
        """`data` for OpenAI's clients, `models` for KServe V1's; models that are loading and
        aliases are listed too."""
        names = self._registry.names_for(request.scope[CALL_KEY])
        data = [self._card(name, model) for name, model in names.items()]
        return json_response({"object": "list", "data": data, "models": list(names)})

    async def one(self, request: Request) -> Response:
        """OpenAI's model object with V1's `name` and `ready`; 503 until ready, 404 if unknown."""
        name = request.path_params["name"]
        try:
            model = self._registry.find(name, call=request.scope[CALL_KEY])
        except (NotFound, Forbidden) as error:
            fault = fault_of(error)
            return Response(openai_body(fault), fault.status)
        ready = await self._registry.is_ready(model.name)
        card = self._card(name, model) | {"name": name, "ready": ready}
        return json_response(card, 200 if ready else 503)

    def _card(self, name: str, model: Served) -> dict[str, Any]:
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
        }
        if context := model.get_limits().get("max_context"):
            card["max_model_len"] = context  # vLLM's name, by which clients shorten prompts
        return card | {"parent": model.name} if self._registry.adapter_of(name) else card
