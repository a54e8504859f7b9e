"""OpenTelemetry spans of one request, or nothing at all. Knows no request, no stage, no exporter.

Off unless `configure` found an exporter in the standard `OTEL_*` variables; then every request
costs one look at a variable that is None. Spans are written down when a stage is over, with the
times that were taken anyway, by the event loop: engine threads know nothing of it, and the
exporter has a thread of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

Value = str | int | float | bool
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_NOTHING: AbstractContextManager[object] = nullcontext()
_exemplar: ContextVar[dict[str, str] | None] = ContextVar("exemplar", default=None)


class _Sink:
    """Where spans go; `tracer` is None while tracing is off."""

    provider: Any = None
    tracer: Any = None


class Trace:
    """The span of one request and those below it; monotonic seconds. One task at a time."""

    def __init__(self, tracer: Any, span: Any, api: Any, offset: float) -> None:
        self._tracer = tracer
        self._span = span
        self._api = api
        self._offset = offset
        self.id = f"{span.get_span_context().trace_id:032x}"
        self.exemplar = {"trace_id": self.id}

    def add(
        self,
        name: str,
        start: float,
        end: float,
        attributes: Mapping[str, Any] | None = None,
        below: Any = None,
    ) -> Any:
        """Write down a span that is over, below another one or the request's; returns it."""
        parent = self._api.set_span_in_context(self._span if below is None else below)
        span = self._tracer.start_span(
            name, parent, attributes=attributes, start_time=_nanoseconds(start, self._offset)
        )
        span.end(_nanoseconds(end, self._offset))
        return span

    def end(self, attributes: Mapping[str, Any], error: str = "") -> None:
        """The request is over; `error` says how it failed."""
        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(self._api.StatusCode.ERROR)
        self._span.end(_nanoseconds(time.monotonic(), self._offset))


def _nanoseconds(moment: float, offset: float) -> int:
    return int((moment + offset) * 1e9)


class _Stage:
    """Times what happens inside `with`, and writes it down as one span."""

    __slots__ = ("_name", "_started", "_trace")

    def __init__(self, trace: Trace, name: str) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._trace.add(self._name, self._started, time.monotonic())


def stage(trace: Trace | None, name: str) -> AbstractContextManager[object]:
    """A span around what is inside `with`; nothing where nothing is traced."""
    return _NOTHING if trace is None else _Stage(trace, name)


def exemplar() -> dict[str, str] | None:
    """What a histogram may show beside a duration of the request that the present task serves: its
    trace; None where it has none."""
    return _exemplar.get()


def is_on() -> bool:
    """Whether anything is traced."""
    return _Sink.tracer is not None


def begin(name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Trace | None:
    """A request's span, below the caller's that W3C's headers name; None if it is not sampled.

    The present task serves this request from now on."""
    tracer = _Sink.tracer
    if tracer is None:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    began = time.monotonic()
    offset = time.time() - began  # one for all its spans: whatever it is, they fit into each other
    span = tracer.start_span(
        name, parent, trace.SpanKind.SERVER, attributes, start_time=_nanoseconds(began, offset)
    )
    if not span.is_recording():
        _exemplar.set(None)
        return None
    begun = Trace(tracer, span, trace, offset)
    _exemplar.set(begun.exemplar)
    return begun


def configure(environ: Mapping[str, str]) -> bool:
    """Export to the OTLP endpoint that `environ` names; False, and off, where it names none."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    if not any(environ.get(name) for name in ENDPOINTS):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces: pip install vision-predictors[otel]")
        return False
    provider = TracerProvider()  # sampler, limits and resource are read from OTEL_* by the SDK
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)
    return True


def use(provider: Any) -> None:
    """Send spans to this `TracerProvider`; None turns tracing off."""
    _Sink.provider = provider
    _Sink.tracer = None if provider is None else provider.get_tracer("predictors")


def stop() -> None:
    """Send what is left; blocks for as long as the exporter's timeout."""
    provider = _Sink.provider
    use(None)
    if provider is not None:
        provider.shutdown()
