"""Routes of the admin port: the state of a running server as JSON, profiles of its traffic, and
adapters.

The port is off unless `server.admin_port` is set. A profile records steps on the engine's thread
and is reported on another; only one is recorded or reported at a time, and only the last trace is
kept.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.base import BasePredictor
from predictors.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    NotFound,
    NotSupported,
    Overloaded,
)
from predictors.observe.thread_times import seconds_by_thread
from predictors.operators.lora_routes import lora_routes
from predictors.protocol.call import Call
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.bodies import check_media, parse_json, receive_small_body
from predictors.protocol.http.exchange import CALL_KEY
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.registry import Registry
from predictors.serving.recording import Recording

if TYPE_CHECKING:
    from predictors.compute.profiling.profiler import Profiler

MAX_BODY_BYTES = 4096
MAX_STEPS = 200  # a denoise step of FLUX is a megabyte of trace
DEFAULT_STEPS = 8
DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S = 60.0, 600.0
LAST_STEP_S = 60.0  # longest wait for the running step once the time is over
MEDIA = frozenset({"application/json"})  # required, so that a web page can't send one
GZIP = "application/gzip"
BUSY = "a profile is being recorded or reported already; try again later"


@dataclass(frozen=True, slots=True)
class ProfileParameters:
    model: str
    steps: int
    timeout_s: float


def admin_routes(
    registry: Registry,
    ending: asyncio.Event,
    make_profiler: Callable[[], Profiler] | None = None,
) -> list[BaseRoute]:
    """The routes. Profiles are refused without `make_profiler`; a waiting one ends with `ending`,
    which is set when the server begins to shut down."""
    admin = _Admin(registry, ending, make_profiler)
    return [
        *lora_routes(registry),
        Route("/debug/engine", PlainEndpoint(admin.engine), methods=["GET"]),
        Route("/debug/profile", PlainEndpoint(admin.profile), methods=["POST"]),
        Route("/debug/profile/{id}", PlainEndpoint(admin.trace), methods=["GET"]),
    ]


class _Admin:
    """The handlers and the last profile. Event loop only."""

    def __init__(
        self,
        registry: Registry,
        ending: asyncio.Event,
        make_profiler: Callable[[], Profiler] | None,
    ) -> None:
        self._registry = registry
        self._ending = ending
        self._make_profiler = make_profiler
        self._is_busy = False
        self._last: tuple[str, bytes] | None = None

    async def engine(self, request: Request) -> Response:
        models = self._registry.models.items()
        shown = {
            name: model.describe() for name, model in models if isinstance(model, BasePredictor)
        }
        requests = {"in_flight": self._registry.in_flight, "draining": self._registry.is_draining}
        threads = await asyncio.to_thread(seconds_by_thread)  # reads a file of each thread
        return json_response({**requests, "threads": threads, "models": shown})

    async def trace(self, request: Request) -> Response:
        if self._last is None or self._last[0] != request.path_params["id"]:
            raise NotFound("there is no such profile; only the last one is kept")
        return _download(*self._last)

    async def profile(self, request: Request) -> Response:
        call: Call = request.scope[CALL_KEY]
        check_media(call, MEDIA)
        timeout_s = self._registry.settings.server.body_timeout_s
        raw = await receive_small_body(request.receive, call, MAX_BODY_BYTES, timeout_s)
        parameters = read_profile_parameters(parse_json(raw))
        model = self._registry.find(parameters.model)
        if self._make_profiler is None or not isinstance(model, BasePredictor):
            raise NotSupported(f"model {parameters.model!r} can't be profiled here")
        if self._is_busy:
            raise Overloaded(BUSY)
        self._is_busy = True
        try:
            profiler = self._make_profiler()
            recording = model.host.record(profiler, parameters.steps)
        except BaseException:
            self._is_busy = False
            raise
        outcome = asyncio.ensure_future(asyncio.wrap_future(recording.outcome))
        last: asyncio.Future[Any] = outcome
        try:
            steps = await self._wait(outcome, recording, request, parameters)
            making = last = asyncio.ensure_future(asyncio.to_thread(profiler.report))
            report = await asyncio.shield(making)
        finally:  # however this request ends, the next profile waits for recording and report
            last.add_done_callback(self._on_last_done)
        name = uuid.uuid4().hex
        self._last = (name, report.trace)
        if GZIP in call.get("accept", ""):
            return _download(name, report.trace)
        where = {"id": name, "trace": f"/debug/profile/{name}", "trace_bytes": len(report.trace)}
        return json_response({"model": parameters.model, "steps": steps, **where, **report.table})

    def _on_last_done(self, last: asyncio.Future[Any]) -> None:
        self._is_busy = False
        if not last.cancelled():
            last.exception()  # or asyncio warns of it when the caller has left

    async def _wait(
        self,
        outcome: asyncio.Future[int],
        recording: Recording,
        request: Request,
        parameters: ProfileParameters,
    ) -> int:
        """The number of recorded steps, at least one. It is lower than `parameters.steps` when the
        time is over, the server begins to drain or the caller leaves."""
        loop = asyncio.get_running_loop()
        others = (loop.create_task(self._ending.wait()), loop.create_task(_disconnected(request)))
        try:
            pending: set[asyncio.Future[Any]] = {outcome, *others}
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait(pending, timeout=parameters.timeout_s, return_when=first)
            recording.end()
            await asyncio.wait({outcome}, timeout=LAST_STEP_S)
        finally:
            recording.end()
            for other in others:
                other.cancel()
        if not outcome.done():
            raise DeadlineExceeded(f"the step that runs takes longer than {LAST_STEP_S:g} s")
        steps = outcome.result()
        if steps == 0 and self._ending.is_set():
            raise Draining("the server began to shut down before there was a step to record")
        if steps == 0:
            raise DeadlineExceeded(
                f"nobody asked {parameters.model!r} for work in {parameters.timeout_s:g} s"
            )
        return steps


def read_profile_parameters(body: Any) -> ProfileParameters:
    """The checked body; raises `InvalidRequest` naming the field."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    unknown = sorted(set(body) - {"model", "steps", "timeout_s"})
    if unknown:
        raise InvalidRequest(f"the body has an unknown field {unknown[0][:64]!r}")
    model = body.get("model")
    if not isinstance(model, str):
        raise InvalidRequest("model must be the name of a served model", param="model")
    steps = _number(body, "steps", DEFAULT_STEPS, (int,), (1, MAX_STEPS))
    timeout_s = _number(body, "timeout_s", DEFAULT_TIMEOUT_S, (int, float), (0.1, MAX_TIMEOUT_S))
    return ProfileParameters(model, int(steps), float(timeout_s))


def _number(
    body: Mapping[str, Any],
    name: str,
    default: float,
    kinds: Collection[type],
    bounds: tuple[float, float],
) -> float:
    value: float = body.get(name, default)
    least, most = bounds
    if type(value) not in kinds or not least <= value <= most:
        what = "a number" if float in kinds else "a whole number"
        raise InvalidRequest(f"{name} must be {what} from {least:g} to {most:g}", param=name)
    return value


async def _disconnected(request: Request) -> None:
    """Return when the caller has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _download(name: str, trace: bytes) -> Response:
    file = f'attachment; filename="profile-{name}.trace.json.gz"'
    headers = (("content-type", GZIP), ("content-disposition", file))
    return Response(trace, headers=headers)
