"""Outcomes of requests: each is counted, logged and traced exactly once, however it ends.

The log lines are the audit log: caller, address, model, cost and outcome of each request. Beyond
some refusals in a second, further ones are only counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Counter, Histogram

from predictors import metrics
from predictors.observe import logs, tracing
from predictors.observe.sampling import SampledLines
from predictors.protocol.call import Call

T = TypeVar("T")

outcome_log = logging.getLogger("predictors.outcomes")

REFUSED = frozenset({"unauthorized", "quota", "queue_full", "overloaded", "not_ready", "draining"})
"""Reasons whose log lines are sampled."""
_sampled = SampledLines(outcome_log)

# The label of every model that is not served, so that callers can't create series.
UNKNOWN_MODEL = "unknown"


async def result_or_error(work: Awaitable[T]) -> T | Exception:
    """The value of `work`, or the exception that it raises; cancellation is not caught.

    The only broad `except` of the protocols: a request that fails must not end its connection or
    other requests.
    """
    try:
        return await work
    except Exception as error:  # noqa: BLE001
        return error


class RequestRecord:
    """One request from its head to its outcome, counted once in `requests_total` and
    `request_seconds`. With a `call`, its outcome is one line of the log and its time a span.

    `model` is the metric label: "unknown" until the edge has read the model's name. Any thread.
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
                logs.trace_id.set(call.trace.id)  # the task serves this request only
        self._protocol = protocol
        self._operation = operation
        self._clock = clock
        self._started = clock()
        self._done = False
        self.model = UNKNOWN_MODEL

    @property
    def elapsed_s(self) -> float:
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
        call = self._call
        if call is None:
            return
        if call.usage is not None:
            call.usage.end_request(reason, call.num_jobs, call.used_s)
        if outcome_log.isEnabledFor(logging.INFO):
            left_out = _sampled.admit(reason) if reason in REFUSED else 0
            if left_out is not None:
                self._log(call, reason, round(seconds * 1000, 1), left_out)

    def _log(self, call: Call, reason: str, total_ms: float, left_out: int) -> None:
        fields = {
            "request_id": call.request_id,
            "caller": call.caller,
            "client.address": call.address,
            "model": self.model,
            "protocol": self._protocol,
            "operation": self._operation,
            "reason": reason,
            "total_ms": total_ms,
            **call.log_fields,
        }
        if call.num_jobs:
            fields["engine_ms"] = round(call.used_s * 1000, 1)
        if left_out:
            fields["left_out"] = left_out
        waited, computed = fields.get("queue_ms", 0), fields.get("compute_ms", 0)
        line = "%s %s %s %s in %.1f ms (queue %d, compute %d) %s"
        labels = (self.model, self._protocol, self._operation, reason)
        outcome_log.info(line, *labels, total_ms, waited, computed, call.request_id, extra=fields)


def log_refused_key(call: Call, protocol: str) -> None:
    """Log a request that had no valid API key, unless too many were just logged."""
    left_out = _sampled.admit("unauthorized") if outcome_log.isEnabledFor(logging.INFO) else None
    if left_out is None:
        return
    fields = {
        "request_id": call.request_id,
        "client.address": call.address,
        "protocol": protocol,
        "reason": "unauthorized",
        "left_out": left_out,
    }
    line = "%s refused: no valid API key, from %s %s"
    outcome_log.info(line, protocol, call.address or "-", call.request_id, extra=fields)


_counters: dict[tuple[str, ...], Counter] = {}
_timers: dict[tuple[str, ...], Histogram] = {}


def _counter(*labels: str) -> Counter:
    # labels() checks and locks on each call; the set of label values is small and closed
    found = _counters.get(labels)
    if found is None:
        found = _counters[labels] = metrics.requests_total.labels(*labels)
    return found


def _timer(*labels: str) -> Histogram:
    found = _timers.get(labels)
    if found is None:
        found = _timers[labels] = metrics.request_seconds.labels(*labels)
    return found
