"""What a failure looks like on the wire: HTTP status, gRPC code, headers, V2 and OpenAI bodies.
Knows no route.

`fault_of` is the only place where an exception becomes something a caller sees. Whatever is not a
`ServingError` is our bug: the caller reads "internal error" and the request id, the log has the
rest. `Tally` counts, logs and traces a request exactly once, however it ends.

    error              HTTP        gRPC                OpenAI code
    InvalidRequest     400         INVALID_ARGUMENT    -
    TooLarge           413         RESOURCE_EXHAUSTED  content_too_large
    UnsupportedMedia   415         INVALID_ARGUMENT    unsupported_media_type
    Forbidden          403         PERMISSION_DENIED   forbidden
    Misdirected        421         PERMISSION_DENIED   misdirected_request
    NotFound           404         NOT_FOUND           not_found
    NotSupported       501         UNIMPLEMENTED       not_supported
    Overloaded         503 or 429  RESOURCE_EXHAUSTED  server_overloaded
    DeadlineExceeded   504         DEADLINE_EXCEEDED   deadline_exceeded
    Cancelled          499 (log)   CANCELLED           client_closed_request
    NotReady           503         UNAVAILABLE         model_not_ready
    Draining           503         UNAVAILABLE         server_draining
    EngineFailed       503         UNAVAILABLE         engine_failed
    OutOfMemory        503         RESOURCE_EXHAUSTED  out_of_memory
    StepFailed         500         INTERNAL            job_failed
    anything else      500         INTERNAL            internal_error

OpenAI's `type` is `invalid_request_error` below 500 and for 501, else `server_error`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import orjson
from prometheus_client import Counter, Histogram

from predictors import errors, metrics
from predictors.observe import logs, tracing
from predictors.protocol.call import Call

T = TypeVar("T")

log = logging.getLogger(__name__)
outcomes = logging.getLogger("predictors.outcomes")

MAX_MESSAGE = 2000  # characters of a message that leave the process
INTERNAL = "internal error"
UNKNOWN_MODEL = (
    "unknown"  # the label of every model that is not served: callers must not make series
)


@dataclass(frozen=True, slots=True)
class Rendering:
    """How one class of errors is shown."""

    status: int
    grpc_code: grpc.StatusCode
    type: str
    code: str | None


_CALLER, _SERVER = "invalid_request_error", "server_error"
_Code = grpc.StatusCode

RENDERINGS: dict[type[BaseException], Rendering] = {
    errors.TooLarge: Rendering(413, _Code.RESOURCE_EXHAUSTED, _CALLER, "content_too_large"),
    errors.UnsupportedMedia: Rendering(
        415, _Code.INVALID_ARGUMENT, _CALLER, "unsupported_media_type"
    ),
    errors.InvalidRequest: Rendering(400, _Code.INVALID_ARGUMENT, _CALLER, None),
    errors.Misdirected: Rendering(421, _Code.PERMISSION_DENIED, _CALLER, "misdirected_request"),
    errors.Forbidden: Rendering(403, _Code.PERMISSION_DENIED, _CALLER, "forbidden"),
    errors.NotFound: Rendering(404, _Code.NOT_FOUND, _CALLER, "not_found"),
    errors.NotSupported: Rendering(501, _Code.UNIMPLEMENTED, _CALLER, "not_supported"),
    errors.Overloaded: Rendering(503, _Code.RESOURCE_EXHAUSTED, _SERVER, "server_overloaded"),
    errors.DeadlineExceeded: Rendering(504, _Code.DEADLINE_EXCEEDED, _SERVER, "deadline_exceeded"),
    errors.Cancelled: Rendering(499, _Code.CANCELLED, _SERVER, "client_closed_request"),
    errors.Draining: Rendering(503, _Code.UNAVAILABLE, _SERVER, "server_draining"),
    errors.NotReady: Rendering(503, _Code.UNAVAILABLE, _SERVER, "model_not_ready"),
    errors.EngineFailed: Rendering(503, _Code.UNAVAILABLE, _SERVER, "engine_failed"),
    errors.OutOfMemory: Rendering(503, _Code.RESOURCE_EXHAUSTED, _SERVER, "out_of_memory"),
    errors.StepFailed: Rendering(500, _Code.INTERNAL, _SERVER, "job_failed"),
}
_UNEXPECTED = Rendering(500, _Code.INTERNAL, _SERVER, "internal_error")


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure, ready for any wire. `retry_after_s` is whole seconds, None where retrying won't
    help.
    """

    status: int
    grpc_code: grpc.StatusCode
    message: str
    reason: str
    type: str
    code: str | None
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """HTTP headers that go with it."""
        return [] if self.retry_after_s is None else [("retry-after", str(self.retry_after_s))]

    def v2_body(self) -> bytes:
        """`{"error": "..."}`"""
        return orjson.dumps({"error": self.message})

    def openai_body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`"""
        return orjson.dumps({"error": self.openai_error()})

    def openai_error(self) -> dict[str, str | None]:
        """The inner object, for a stream that has already begun."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }


def fault_of(error: BaseException, *, overload_status: int = 503, request_id: str = "-") -> Fault:
    """The fault for `error`. What nobody raised on purpose is logged with its trace and shown as
    nothing.
    """
    if not isinstance(error, errors.ServingError):
        extra = {"request_id": request_id}
        log.error("request %s failed unexpectedly", request_id, exc_info=error, extra=extra)
        message = f"{INTERNAL}; the log has more under request id {request_id}"
        return _fault(_UNEXPECTED, message, "internal")
    rendering = _rendering(type(error))
    if rendering.status == 500:
        extra = {"request_id": request_id}
        log.error("request %s failed: %s", request_id, error.message, exc_info=error, extra=extra)
    if isinstance(error, errors.Overloaded) and overload_status == 429:
        rendering = Rendering(429, rendering.grpc_code, "rate_limit_error", rendering.code)
    retry_s = getattr(error, "retry_after_s", None)
    return _fault(
        rendering,
        clean(error.message),
        error.reason,
        param=clean(error.param) if getattr(error, "param", None) else None,  # type: ignore[attr-defined]
        retry_after_s=None if retry_s is None else max(1, math.ceil(retry_s)),
    )


async def attempt(work: Awaitable[T]) -> T | Exception:
    """What `work` returns or raises. The edges' only broad `except`: whatever one request does, its
    connection and everybody else's survive it. Cancellation is not caught."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001
        return error


def clean(message: str) -> str:
    """`message` cut to a sane length and without lone surrogates, which no encoder takes."""
    return message[:MAX_MESSAGE].encode("utf-8", "replace").decode("utf-8")


def _rendering(kind: type[BaseException]) -> Rendering:
    for base in kind.__mro__:
        found = RENDERINGS.get(base)
        if found is not None:
            return found
    return _UNEXPECTED


def _fault(
    rendering: Rendering,
    message: str,
    reason: str,
    *,
    param: str | None = None,
    retry_after_s: int | None = None,
) -> Fault:
    return Fault(
        rendering.status,
        rendering.grpc_code,
        message,
        reason,
        rendering.type,
        rendering.code,
        param,
        retry_after_s,
    )


class Tally:
    """Counts one request once: `requests_total` and `request_seconds`; with a `call`, its outcome
    is one line of the log and its time a span. One per request, any thread.

    `model` may be set late, when the edge has read whom the request is for; until then it is
    "unknown".
    """

    __slots__ = ("_call", "_clock", "_done", "_operation", "_protocol", "_started", "model")

    def __init__(
        self,
        protocol: str,
        operation: str,
        call: Call | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        if call is not None and tracing.is_on():
            names = {"request_id": call.request_id, "protocol": protocol, "operation": operation}
            call.trace = tracing.begin(f"{protocol} {operation}", call, names)
            if call.trace is not None:
                logs.trace_id.set(call.trace.id)  # the task is this request's own
        self._protocol = protocol
        self._operation = operation
        self._clock = clock
        self._started = clock()
        self._done = False
        self.model = UNKNOWN_MODEL

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request's head was read."""
        return self._clock() - self._started

    def end(self, reason: str) -> None:
        """Count the request under `reason`, one of `metrics.REASONS`; later calls do nothing."""
        if self._done:
            return
        self._done = True
        _counter(self.model, self._protocol, self._operation, reason).inc()
        outcome = "ok" if reason == "ok" else "error"
        seconds = self.elapsed_s
        trace = self._call.trace if self._call is not None else None
        exemplar = None if trace is None else trace.exemplar
        _timer(self.model, self._protocol, outcome).observe(seconds, exemplar)
        if trace is not None:
            trace.end({"model": self.model, "reason": reason}, "" if reason == "ok" else reason)
        if self._call is not None and outcomes.isEnabledFor(logging.INFO):
            self._log(self._call, reason, round(seconds * 1000, 1))

    def _log(self, call: Call, reason: str, total_ms: float) -> None:
        facts = {
            "request_id": call.request_id,
            "model": self.model,
            "protocol": self._protocol,
            "operation": self._operation,
            "reason": reason,
            "total_ms": total_ms,
            **call.facts,
        }
        waited, computed = facts.get("queue_ms", 0), facts.get("compute_ms", 0)
        line = "%s %s %s %s in %.1f ms (queue %d, compute %d) %s"
        whose = (self.model, self._protocol, self._operation, reason)
        outcomes.info(line, *whose, total_ms, waited, computed, call.request_id, extra=facts)


_counters: dict[tuple[str, ...], Counter] = {}
_timers: dict[tuple[str, ...], Histogram] = {}


def _counter(*labels: str) -> Counter:
    # labels() checks and locks each time; the set of label values is small and closed
    found = _counters.get(labels)
    if found is None:
        found = _counters[labels] = metrics.requests_total.labels(*labels)
    return found


def _timer(*labels: str) -> Histogram:
    found = _timers.get(labels)
    if found is None:
        found = _timers[labels] = metrics.request_seconds.labels(*labels)
    return found
