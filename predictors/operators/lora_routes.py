"""Routes of the admin port that list, add and remove adapters (LoRA) of a running server.

An adapter is read from below one folder that the operator names in a setting, and by no other way.
Files are read and device tables written on threads of their own, a few at a time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest, NotFound, NotSupported, Overloaded
from predictors.protocol.call import Call
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.bodies import check_media, parse_json, receive_small_body
from predictors.protocol.http.exchange import CALL_KEY
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.openai.lora_fields import NAME_RULE, is_adapter_name
from predictors.protocol.registry import Registry
from predictors.serving.loop import try_call

T = TypeVar("T")

MAX_BODY_BYTES = 4096
MAX_PATH = 1024  # characters
MAX_CHANGES = 4  # at a time; a removal waits for the pictures that use the adapter
MEDIA = frozenset({"application/json"})  # required, so that a web page can't send one
ROOT_OFF = (
    "adding adapters over the network is off; the operator can name a folder for them with "
    "PREDICTORS_SERVER_LORA_ROOT"
)


@runtime_checkable
class TakesLoras(Protocol):
    """A served model whose adapters can be changed. Any thread."""

    @property
    def loras(self) -> Sequence[AdapterSummary]:
        """Descriptions of the adapters that requests may use."""

    def add_lora(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        """Load the adapter at `path`; blocks until requests may use it. Links may lead into `root`
        only."""

    def remove_lora(self, name: str) -> AdapterSummary:
        """Blocks until accepted requests are answered and its memory is free."""


def lora_routes(registry: Registry) -> list[BaseRoute]:
    routes = _LoraRoutes(registry)
    return [
        Route("/admin/loras", PlainEndpoint(routes.listing), methods=["GET"]),
        Route("/admin/loras", PlainEndpoint(routes.add), methods=["POST"]),
        Route("/admin/loras/{name}", PlainEndpoint(routes.remove), methods=["DELETE"]),
    ]


class _LoraRoutes:
    """The handlers. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._num_changes = 0

    async def listing(self, request: Request) -> Response:
        found = [
            {"model": name, **asdict(lora)}
            for name, model in self._models().items()
            for lora in model.loras
        ]
        return json_response({"loras": found})

    async def add(self, request: Request) -> Response:
        call: Call = request.scope[CALL_KEY]
        check_media(call, MEDIA)
        own = self._registry.settings.server
        raw = await receive_small_body(request.receive, call, MAX_BODY_BYTES, own.body_timeout_s)
        body = _read_body(parse_json(raw))
        model_name, model = self._model(body.get("model"))
        name = body["name"]
        if f"{model_name}:{name}" in self._registry.names and name not in _names(model):
            raise InvalidRequest(f"'{model_name}:{name}' is the name of a model", param="name")
        path, root = resolve_below(own.lora_root, body["path"])
        summary = await self._in_thread(model.add_lora, name, path, root)
        return json_response({"model": model_name, **asdict(summary)}, 201)

    async def remove(self, request: Request) -> Response:
        model_name, model = self._model(request.query_params.get("model"))
        name = request.path_params["name"]
        if name not in _names(model):
            loaded = ", ".join(_names(model)) or "none"
            raise NotFound(f"{model_name} has no adapter {name[:64]!r}; loaded: {loaded}")
        summary = await self._in_thread(model.remove_lora, name)
        return json_response({"model": model_name, **asdict(summary)})

    def _models(self) -> dict[str, TakesLoras]:
        models = self._registry.models.items()
        return {name: model for name, model in models if isinstance(model, TakesLoras)}

    def _model(self, name: str | None) -> tuple[str, TakesLoras]:
        """The model of a request, which has to name it if several take adapters."""
        models = self._models()
        if not models:
            raise NotSupported("no model here takes adapters")
        if name is None and len(models) > 1:
            raise InvalidRequest(f"which model? One of {', '.join(models)}", param="model")
        name = next(iter(models)) if name is None else name
        if name not in models:
            message = f"no model {name[:64]!r} takes adapters; there is {', '.join(models)}"
            raise NotFound(message)
        return name, models[name]

    async def _in_thread(self, change: Callable[..., T], *arguments: Any) -> T:
        """Run a change to its end, also if the caller leaves."""
        if self._num_changes >= MAX_CHANGES:
            raise Overloaded("adapters are being added or removed already; try again later")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            value, error = try_call(change, *arguments)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end, outcome, value, error)

        # daemons: the process ends while one waits for a picture
        threading.Thread(target=work, name="loras", daemon=True).start()
        self._num_changes += 1  # `_end` runs on this loop, hence later
        return await outcome

    def _end(
        self, outcome: asyncio.Future[T], value: T | None, error: BaseException | None
    ) -> None:
        self._num_changes -= 1
        if outcome.done():  # the caller has left
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, value))


def _names(model: TakesLoras) -> list[str]:
    return [lora.name for lora in model.loras]


def _read_body(body: Any) -> dict[str, str]:
    """The fields, checked but for the path. Raises `InvalidRequest` naming the field."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    if unknown := sorted(set(body) - {"model", "name", "path"}):
        raise InvalidRequest(f"the body has an unknown field {unknown[0][:64]!r}")
    for field in ("name", "path"):
        if field not in body:
            raise InvalidRequest(f"{field} is required", param=field)
    for field, value in body.items():
        if not isinstance(value, str) or len(value) > MAX_PATH or "\0" in value:
            raise InvalidRequest(f"{field} must be a text of at most {MAX_PATH}", param=field)
    if not is_adapter_name(body["name"]):
        raise InvalidRequest(f"an adapter's name has {NAME_RULE}", param="name")
    return body


def resolve_below(root: str, path: str) -> tuple[Path, Path]:
    """The real path of `path`, as it is or below `root`, and that of `root`.

    Raises `NotSupported` without a root, and `InvalidRequest` for a path that leads out of it, in
    the same words whether there is something or not.
    """
    if not root:
        raise NotSupported(ROOT_OFF)
    real_root = Path(os.path.realpath(root))
    try:
        found = Path(os.path.realpath(real_root / path))
    except (OSError, ValueError) as error:
        raise InvalidRequest("path can't be read", param="path") from error
    if found == real_root or not found.is_relative_to(real_root):
        raise InvalidRequest(
            "path must lead to something below the folder of PREDICTORS_SERVER_LORA_ROOT",
            param="path",
        )
    return found, real_root
