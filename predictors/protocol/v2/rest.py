"""V2 REST routes: health, metadata, inference and the model repository.

Routes of the Open Inference Protocol or Triton that this server lacks (`config`, `stats`, `trace`,
shared memory) are ordinary 404s. `load` and `unload` answer 501 unless the operator enabled them,
since callers are not authenticated; they only take a model out of service and back, its weights
stay loaded. V1's `:predict` and `:explain` answer 501 and name V2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors import __version__
from predictors.errors import InvalidRequest, NotSupported
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.bodies import INLINE_BYTES, JSON_MEDIA, parse_json, receive_small_body
from predictors.protocol.http.exchange import CALL_KEY, Endpoint, Exchange
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served, TellsWarming
from predictors.protocol.v2.values import VERSION, V2Request, V2Response, num_bytes
from predictors.protocol.v2.wire_json import HEADER, decode_json_request, encode_json_response

NAME = "vision-predictors"
MEDIA = JSON_MEDIA | {"application/octet-stream"}
BINARY_TYPE = ("content-type", "application/octet-stream")
REPOSITORY_OFF = (
    "loading and unloading over the network is off; the operator can turn it on with "
    "PREDICTORS_SERVER_REPOSITORY_API"
)
MODEL = "/v2/models/{model:model}"
MODEL_VERSION = MODEL + "/versions/{version}"


def v2_routes(registry: Registry) -> list[BaseRoute]:
    """All V2 routes, the most frequent first, and V1's two."""
    routes = V2Routes(registry)
    infer = Endpoint(
        routes.infer, registry, protocol="v2_rest", operation="infer", body_of=Fault.v2_body
    )
    found: list[BaseRoute] = [
        Route(MODEL + "/infer", infer, methods=["POST"]),
        Route(MODEL_VERSION + "/infer", infer, methods=["POST"]),
        *_probes(routes),
    ]
    for path, answer in (
        ("/v2", routes.server_metadata),
        ("/v2/models", routes.model_names),
        ("/version", routes.version),
        (MODEL, routes.model_metadata),
        (MODEL_VERSION, routes.model_metadata),
    ):
        found.append(Route(path, PlainEndpoint(answer), methods=["GET"]))
    index = PlainEndpoint(routes.repository_index)
    found.append(Route("/v2/repository/index", index, methods=["GET", "POST"]))
    for path, answer in (
        ("/v2/repository/models/{model:model}/load", routes.load),
        ("/v2/repository/models/{model:model}/unload", routes.unload),
        ("/v1/models/{model:model}:predict", routes.v1),
        ("/v1/models/{model:model}:explain", routes.v1),
    ):
        found.append(Route(path, PlainEndpoint(answer), methods=["POST"]))
    return found


def probe_routes(registry: Registry) -> list[BaseRoute]:
    """The routes of health probes, which any event loop may serve."""
    return _probes(V2Routes(registry))


def _probes(routes: V2Routes) -> list[BaseRoute]:
    found = (
        ("/v2/health/live", routes.live),
        ("/v2/health/ready", routes.ready),
        (MODEL + "/ready", routes.model_ready),
        (MODEL_VERSION + "/ready", routes.model_ready),
        ("/", routes.root),
        ("/health", routes.health),
    )
    return [Route(path, PlainEndpoint(answer), methods=["GET"]) for path, answer in found]


class V2Routes:
    """Handlers of the V2 routes. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    # -- inference -------------------------------------------------------------------------------
    async def infer(self, exchange: Exchange) -> Response:
        name, version = exchange.path["model"], exchange.path.get("version", "")
        model = exchange.find(name, version)
        exchange.admit(model)
        self._registry.check_room(model, exchange.call)
        head = {HEADER: found} if (found := exchange.call.get(HEADER)) is not None else {}
        files = model.file_inputs
        request = await exchange.decode_body(
            decode_json_request, head, name, version, files, model.name, media=MEDIA
        )
        check_outputs(request, model)
        response = complete(await model.infer(request, exchange.call), request, exchange.call)
        if num_bytes(response) > INLINE_BYTES:
            body, json_bytes = await asyncio.to_thread(encode_json_response, response, request)
        else:
            body, json_bytes = encode_json_response(response, request)
        if json_bytes is None:
            return Response(body)
        return Response(body, headers=(BINARY_TYPE, (HEADER, str(json_bytes))))

    # -- health ----------------------------------------------------------------------------------
    async def root(self, request: Request) -> Response:
        """`GET /`, KServe's liveness message; plain load balancers ask for it too."""
        return json_response({"status": "alive"})

    async def live(self, request: Request) -> Response:
        """503 once an engine is dead or stalled, and the process should be restarted."""
        live = self._registry.is_live()
        return json_response({"live": live}, 200 if live else 503)

    async def ready(self, request: Request) -> Response:
        """503 until every model is warm, and again while the server shuts down."""
        ready = await self._registry.all_ready()
        found = {"ready": ready, **warming(self._registry.models.values()), **self._reason(ready)}
        return json_response(found, 200 if ready else 503)

    async def health(self, request: Request) -> Response:
        """vLLM's: the same without a body."""
        ready = await self._registry.all_ready()
        return Response(b"", 200 if ready else 503, ())

    async def model_ready(self, request: Request) -> Response:
        model = self._find(request)
        ready = await self._registry.is_ready(model.name)
        found = {"name": request.path_params["model"], "ready": ready, **warming([model])}
        found |= self._reason(ready)
        return json_response(found, 200 if ready else 503)

    def _reason(self, ready: bool) -> dict[str, str]:
        """Why nothing will be ready until somebody acts, if that is known."""
        fault = self._registry.overload.at_rest.fault
        return {"reason": fault} if fault and not ready else {}

    # -- metadata --------------------------------------------------------------------------------
    async def server_metadata(self, request: Request) -> Response:
        found = extensions(self._registry)
        return json_response({"name": NAME, "version": __version__, "extensions": found})

    async def version(self, request: Request) -> Response:
        """vLLM's address for it."""
        return json_response({"version": __version__})

    async def model_names(self, request: Request) -> Response:
        names = self._registry.names_for(request.scope[CALL_KEY])
        return json_response({"models": list(names)})

    async def model_metadata(self, request: Request) -> Response:
        model, name = self._find(request), request.path_params["model"]
        return json_response(metadata(model) | capabilities(model) | {"name": name})

    # -- repository ------------------------------------------------------------------------------
    async def repository_index(self, request: Request) -> Response:
        """Triton's index with the name, version and state of each model. `{"ready": true}` selects
        ready ones."""
        timeout_s = self._registry.settings.server.body_timeout_s
        raw = await receive_small_body(request.receive, request.scope[CALL_KEY], 4096, timeout_s)
        wanted = parse_json(raw) if raw.strip() else {}
        if not isinstance(wanted, dict) or wanted.keys() - {"ready"}:
            raise InvalidRequest("the body may have one field, ready")
        only_ready = wanted.get("ready", False)
        if not isinstance(only_ready, bool):
            raise InvalidRequest("ready must be true or false", param="ready")
        entries = []
        allowed = self._registry.names_for(request.scope[CALL_KEY])
        for name in self._registry.models:
            if name not in allowed:
                continue
            ready = await self._registry.is_ready(name)
            state = "READY" if ready else "UNAVAILABLE"
            if ready or not only_ready:
                why = self._reason(ready).get("reason", "")
                entries.append({"name": name, "version": VERSION, "state": state, "reason": why})
        return json_response(entries)

    async def load(self, request: Request) -> Response:
        self._check_repository(request)
        self._registry.restore(request.path_params["model"])
        return json_response({"name": request.path_params["model"], "load": True})

    async def unload(self, request: Request) -> Response:
        self._check_repository(request)
        self._registry.withdraw(request.path_params["model"])
        return json_response({"name": request.path_params["model"], "unload": True})

    async def v1(self, request: Request) -> Response:
        """Refuse V1 inference: it cannot carry named tensors and parameters."""
        name = request.path_params["model"]
        self._registry.find(name, call=request.scope[CALL_KEY])
        raise NotSupported(f"V1 inference is not offered; use POST /v2/models/{name}/infer")

    def _find(self, request: Request) -> Served:
        parameters = request.path_params
        version = parameters.get("version", "")
        return self._registry.find(parameters["model"], version, call=request.scope[CALL_KEY])

    def _check_repository(self, request: Request) -> None:
        if not self._registry.settings.server.repository_api:
            raise NotSupported(REPOSITORY_OFF)
        self._registry.find(request.path_params["model"], call=request.scope[CALL_KEY])


def extensions(registry: Registry) -> list[str]:
    """The protocol's extensions that are offered as a whole."""
    found = ["binary_tensor_data", "parameters", "schedule_policy"]
    if registry.settings.server.repository_api:
        found.append("model_repository")
    return found


def metadata(model: Served) -> dict[str, Any]:
    """A model's V2 metadata, for REST and gRPC."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "",
        "inputs": model.get_input_types(),
        "outputs": model.get_output_types(),
    }


def capabilities(model: Served) -> dict[str, Any]:
    """Fields of V2 metadata beside those of the protocol, over REST: gRPC's message has no place
    for it."""
    found = {"parameters": model.get_parameters(), "limits": model.get_limits(), **warming([model])}
    return {name: value for name, value in found.items() if value}


def warming(models: Iterable[Served]) -> dict[str, str]:
    """`n/m`: n of m promised shapes are warm, of those models that are ready before all are. Empty
    without any."""
    telling = (model.warming for model in models if isinstance(model, TellsWarming))
    told = [counts for counts in telling if counts is not None]
    done, total = (sum(counts) for counts in zip(*told, strict=True)) if told else (0, 0)
    return {"warming": f"{done}/{total}"} if told else {}


def check_outputs(request: V2Request, model: Served) -> None:
    """Raise `InvalidRequest` for a requested output that the model does not have."""
    if not request.outputs:
        return
    known = [output["name"] for output in model.get_output_types()]
    for name in request.outputs:
        if name not in known:
            shown = name[:64]
            message = f"there is no output {shown!r}; {model.name} has {', '.join(known)}"
            raise InvalidRequest(message, param=shown)


def complete(response: V2Response, request: V2Request, call: Call) -> V2Response:
    """Add the id, the version and the name that the request used to the response, and select the
    requested outputs in their order."""
    outputs = response.outputs
    if request.outputs:
        by_name = {tensor.name: tensor for tensor in outputs}
        # a response that others follow may lack some
        outputs = tuple(by_name[name] for name in request.outputs if name in by_name)
    identity = request.id or call.request_id
    return replace(response, model=request.model, id=identity, version=VERSION, outputs=outputs)
