"""Errors on the wire: HTTP status, gRPC code, headers, bodies of V2, OpenAI and Anthropic.

`fault_of` is the only place where an exception becomes something that a caller sees. An exception
that is not a `ServingError` is our bug: the caller reads "internal error" and the request id, and
the log has the traceback.

    error              HTTP        gRPC                OpenAI code
    InvalidRequest     400         INVALID_ARGUMENT    -
    TooLarge           413         RESOURCE_EXHAUSTED  content_too_large
    PromptTooLong      400         INVALID_ARGUMENT    context_length_exceeded
    UnsupportedMedia   415         INVALID_ARGUMENT    unsupported_media_type
    ContentRefused     400         INVALID_ARGUMENT    content_policy_violation
    Unauthorized       401         UNAUTHENTICATED     invalid_api_key
    Forbidden          403         PERMISSION_DENIED   forbidden
    Misdirected        421         PERMISSION_DENIED   misdirected_request
    NotFound           404         NOT_FOUND           not_found
    Gone               410         NOT_FOUND           gone
    NotSupported       501         UNIMPLEMENTED       not_supported
    QuotaExceeded      429         RESOURCE_EXHAUSTED  rate_limit_exceeded
    Overloaded         503 or 429  RESOURCE_EXHAUSTED  server_overloaded
    DeadlineExceeded   504         DEADLINE_EXCEEDED   deadline_exceeded
    WakeTimeout        504         UNAVAILABLE         model_not_ready
    Cancelled          499 (log)   CANCELLED           client_closed_request
    NotReady           503         UNAVAILABLE         model_not_ready
    ShapeNotWarm       503         UNAVAILABLE         shape_not_warm
    Draining           503         UNAVAILABLE         server_draining
    EngineFailed       503         UNAVAILABLE         engine_failed
    OutOfMemory        503         RESOURCE_EXHAUSTED  out_of_memory
    StepFailed         500         INTERNAL            job_failed
    CheckFailed        500         INTERNAL            check_failed
    SigningFailed      500         INTERNAL            signing_failed
    UpstreamFailed     502         UNAVAILABLE         upstream_failed
    anything else      500         INTERNAL            internal_error

OpenAI's `type` is `invalid_request_error` below 500 and for 501, `rate_limit_error` for 429, else
`server_error`. Anthropic's is in `ANTHROPIC_TYPES`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import grpc
import orjson

from predictors import errors

log = logging.getLogger(__name__)

ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status. Others are `invalid_request_error` below 500 and for 501, else `api_error`."""
MAX_MESSAGE = 2000  # characters of a message that leave the process
INTERNAL = "internal error"


@dataclass(frozen=True, slots=True)
class Rendering:
    status: int
    grpc_code: grpc.StatusCode
    type: str
    code: str | None


_CALLER, _SERVER = "invalid_request_error", "server_error"
_RATE_LIMIT = "rate_limit_error"
_Code = grpc.StatusCode

RENDERINGS: dict[type[BaseException], Rendering] = {
    errors.TooLarge: Rendering(413, _Code.RESOURCE_EXHAUSTED, _CALLER, "content_too_large"),
    errors.PromptTooLong: Rendering(
        400, _Code.INVALID_ARGUMENT, _CALLER, "context_length_exceeded"
    ),
    errors.UnsupportedMedia: Rendering(
        415, _Code.INVALID_ARGUMENT, _CALLER, "unsupported_media_type"
    ),
    errors.ContentRefused: Rendering(
        400, _Code.INVALID_ARGUMENT, _CALLER, "content_policy_violation"
    ),
    errors.InvalidRequest: Rendering(400, _Code.INVALID_ARGUMENT, _CALLER, None),
    errors.Unauthorized: Rendering(401, _Code.UNAUTHENTICATED, _CALLER, "invalid_api_key"),
    errors.Misdirected: Rendering(421, _Code.PERMISSION_DENIED, _CALLER, "misdirected_request"),
    errors.Forbidden: Rendering(403, _Code.PERMISSION_DENIED, _CALLER, "forbidden"),
    errors.Gone: Rendering(410, _Code.NOT_FOUND, _CALLER, "gone"),
    errors.NotFound: Rendering(404, _Code.NOT_FOUND, _CALLER, "not_found"),
    errors.NotSupported: Rendering(501, _Code.UNIMPLEMENTED, _CALLER, "not_supported"),
    errors.QuotaExceeded: Rendering(
        429, _Code.RESOURCE_EXHAUSTED, _RATE_LIMIT, "rate_limit_exceeded"
    ),
    errors.Overloaded: Rendering(503, _Code.RESOURCE_EXHAUSTED, _SERVER, "server_overloaded"),
    errors.WakeTimeout: Rendering(504, _Code.UNAVAILABLE, _SERVER, "model_not_ready"),
    errors.DeadlineExceeded: Rendering(504, _Code.DEADLINE_EXCEEDED, _SERVER, "deadline_exceeded"),
    errors.Cancelled: Rendering(499, _Code.CANCELLED, _SERVER, "client_closed_request"),
    errors.Draining: Rendering(503, _Code.UNAVAILABLE, _SERVER, "server_draining"),
    errors.NotReady: Rendering(503, _Code.UNAVAILABLE, _SERVER, "model_not_ready"),
    errors.ShapeNotWarm: Rendering(503, _Code.UNAVAILABLE, _SERVER, "shape_not_warm"),
    errors.EngineFailed: Rendering(503, _Code.UNAVAILABLE, _SERVER, "engine_failed"),
    errors.OutOfMemory: Rendering(503, _Code.RESOURCE_EXHAUSTED, _SERVER, "out_of_memory"),
    errors.StepFailed: Rendering(500, _Code.INTERNAL, _SERVER, "job_failed"),
    errors.CheckFailed: Rendering(500, _Code.INTERNAL, _SERVER, "check_failed"),
    errors.SigningFailed: Rendering(500, _Code.INTERNAL, _SERVER, "signing_failed"),
    errors.UpstreamFailed: Rendering(502, _Code.UNAVAILABLE, _SERVER, "upstream_failed"),
}
_UNEXPECTED = Rendering(500, _Code.INTERNAL, _SERVER, "internal_error")

# OpenAI's clients repeat every 5xx twice unless `x-should-retry` forbids it. After these a
# repetition costs the same again and most likely fails again.
REPEATS_ITS_COST = frozenset(
    {"deadline_exceeded", "job_failed", "check_failed", "signing_failed", "out_of_memory",
     "internal_error", "upstream_failed"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure in terms of every wire format. `retry_after_s` is in whole seconds, None where a
    retry won't help."""

    status: int
    grpc_code: grpc.StatusCode
    message: str
    reason: str
    type: str
    code: str | None
    param: str | None = None
    retry_after_s: int | None = None
    accept_encoding: str | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """HTTP headers beside those of the body."""
        found = []
        if self.retry_after_s is not None:
            found.append(("retry-after", str(self.retry_after_s)))
        if self.status == 401:
            found.append(("www-authenticate", "Bearer"))  # RFC 6750, 3
        if self.code in REPEATS_ITS_COST:
            found.append(("x-should-retry", "false"))
        if self.accept_encoding is not None:
            found.append(("accept-encoding", self.accept_encoding))
        return found

    def v2_body(self) -> bytes:
        return orjson.dumps({"error": self.message})

    def openai_body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`"""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})

    def anthropic_body(self) -> bytes:
        """`{"type": "error", "error": {"type", "message"}}`. The message names the field."""
        usual = "api_error" if self.type == _SERVER else "invalid_request_error"
        kind, message = ANTHROPIC_TYPES.get(self.status, usual), self.message
        if self.code == "context_length_exceeded":
            message = f"prompt is too long: {message}"  # the words that clients look for
        elif self.param is not None and self.param not in message:
            message = f"{self.param}: {message}"
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def fault_of(error: BaseException, *, overload_status: int = 503, request_id: str = "-") -> Fault:
    """An unexpected exception is logged; the caller reads only "internal error"."""
    if not isinstance(error, errors.ServingError):
        extra = {"request_id": request_id}
        log.error("request %s failed unexpectedly", request_id, exc_info=error, extra=extra)
        message = f"{INTERNAL}; the log has more under request id {request_id}"
        return Fault(500, _Code.INTERNAL, message, "internal", _SERVER, "internal_error")
    kinds = type(error).__mro__
    rendering = next((RENDERINGS[kind] for kind in kinds if kind in RENDERINGS), _UNEXPECTED)
    if rendering.status == 500:
        extra = {"request_id": request_id}
        log.error("request %s failed: %s", request_id, error.message, exc_info=error, extra=extra)
    if isinstance(error, errors.Overloaded) and overload_status == 429:
        rendering = Rendering(429, rendering.grpc_code, _RATE_LIMIT, rendering.code)
    retry_s = getattr(error, "retry_after_s", None)
    return Fault(
        rendering.status,
        rendering.grpc_code,
        clean(error.message),
        error.reason,
        rendering.type,
        rendering.code,
        param=clean(error.param) if getattr(error, "param", None) else None,  # type: ignore[attr-defined]
        retry_after_s=None if retry_s is None else max(1, math.ceil(retry_s)),
        accept_encoding=getattr(error, "accept_encoding", None),
    )


def clean(message: str) -> str:
    """At most `MAX_MESSAGE` characters; lone surrogates, which can't be encoded, are replaced."""
    return message[:MAX_MESSAGE].encode("utf-8", "replace").decode("utf-8")
