"""OpenTelemetry spans of a request. Tracing is off unless the standard `OTEL_*` variables name an
exporter; it then costs a request one check of a variable.

The event loop creates a span when its stage is over, from times that were taken anyway, so engine
threads do no work for it. The exporter has a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from prometheus_client import Histogram

log = logging.getLogger(__name__)

Value = str | int | float | bool
STOP_TIMEOUT_S = 2.0  # for the last spans, at the end of the process
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_NOTHING: AbstractContextManager[object] = nullcontext()
_exemplar: ContextVar[dict[str, str] | None] = ContextVar("exemplar", default=None)


class _Sink:
    """The tracer in use; None while tracing is off."""

    provider: Any = None
    tracer: Any = None


class Trace:
    """The span of a request, and its child spans. Monotonic seconds; one task at a time."""

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
        """Create a span that is over, as a child of `below` or of the request's span."""
        parent = self._api.set_span_in_context(self._span if below is None else below)
        span = self._tracer.start_span(
            name, parent, attributes=attributes, start_time=_nanoseconds(start, self._offset)
        )
        span.end(_nanoseconds(end, self._offset))
        return span

    def end(self, attributes: Mapping[str, Any], error: str = "") -> None:
        """End the request's span. `error` is the reason of its failure, or empty."""
        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(self._api.StatusCode.ERROR)
        self._span.end(_nanoseconds(time.monotonic(), self._offset))


def _nanoseconds(moment: float, offset: float) -> int:
    return int((moment + offset) * 1e9)


class TimedStage:
    """Times its block: observes the seconds in a histogram and creates a span, where there is one
    of either."""

    __slots__ = ("_histogram", "_name", "_started", "_trace")

    def __init__(
        self, histogram: Histogram | None, trace: Trace | None = None, name: str = ""
    ) -> None:
        self._histogram = histogram
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
        now = time.monotonic()
        if self._histogram is not None:
            self._histogram.observe(now - self._started)
        if self._trace is not None:
            self._trace.add(self._name, self._started, now)


def stage(trace: Trace | None, name: str) -> AbstractContextManager[object]:
    """A context manager that creates a span for its block; it does nothing without a trace."""
    return _NOTHING if trace is None else TimedStage(None, trace, name)


def exemplar() -> dict[str, str] | None:
    """The trace id of the current task's request, for histograms; None if it is not traced."""
    return _exemplar.get()


def is_on() -> bool:
    return _Sink.tracer is not None


def begin(name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Trace | None:
    """Start the span of a request, as a child of the span in its W3C headers. None if it is not
    sampled. The current task serves this request from now on."""
    tracer = _Sink.tracer
    if tracer is None:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    began = time.monotonic()
    offset = time.time() - began  # one offset for all spans of a request, so that they nest
    span = tracer.start_span(
        name, parent, trace.SpanKind.SERVER, attributes, start_time=_nanoseconds(began, offset)
    )
    if not span.is_recording():
        _exemplar.set(None)
        return None
    begun = Trace(tracer, span, trace, offset)
    _exemplar.set(begun.exemplar)
    return begun


def configure_tracing(environ: Mapping[str, str]) -> bool:
    """Export to the OTLP endpoint in `environ`. False, with tracing off, if there is none."""
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
    provider = TracerProvider()  # the SDK reads sampler, limits and resource from OTEL_*
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)
    return True


def use(provider: Any) -> None:
    """Use this `TracerProvider`; None turns tracing off."""
    _Sink.provider = provider
    _Sink.tracer = None if provider is None else provider.get_tracer("predictors")


def stop(timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Export the remaining spans, for at most `timeout_s`: the exporter itself would try for ten
    seconds to reach a collector that is away. What is left then is lost."""
    provider = _Sink.provider
    use(None)
    if provider is None:
        return
    ending = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    ending.start()
    ending.join(timeout_s)
    if ending.is_alive():
        log.warning("the last spans are lost: the collector did not take them in %g s", timeout_s)
