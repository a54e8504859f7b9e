"""The jobs, requests and engine seconds of each API key's name, and the limits on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from predictors import metrics
from predictors.errors import InvalidRequest, QuotaExceeded
from predictors.protocol.key_file import ApiKey

OTHER = "other"
"""The label of callers without a key in use."""
MINUTE_S = 60.0
RETRY_JOBS_S = 1.0  # after the limit of jobs: when one ends is not known here
_NO_LIMITS = ApiKey("", b"")


class Bucket:
    """A token bucket that holds a minute's worth, at least 1, and may be overdrawn."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_s = per_minute / MINUTE_S
        self._capacity = max(1.0, per_minute)
        self._level = self._capacity
        self._at = now

    def take(self, amount: float, now: float) -> None:
        self._level = self._now(now) - amount
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until it holds so much."""
        return max(0.0, amount - self._now(now)) / self._per_s

    def _now(self, now: float) -> float:
        return min(self._capacity, self._level + (now - self._at) * self._per_s)


class KeyUsage:
    """One name's jobs, requests and engine seconds. Event loop only."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.open_jobs = 0
        self._clock = clock
        self._key = _NO_LIMITS
        self._requests: Bucket | None = None
        self._seconds: Bucket | None = None
        self.label = name
        """Label of its series; `OTHER` once the name is in use no more."""

    def limit(self, key: ApiKey) -> None:
        """Apply the limits of this key from now on."""
        if key.requests_per_minute != self._key.requests_per_minute:
            self._requests = self._bucket(key.requests_per_minute)
        if key.engine_seconds_per_minute != self._key.engine_seconds_per_minute:
            self._seconds = self._bucket(key.engine_seconds_per_minute)
        self._key = key

    def begin_request(self) -> None:
        """Count a request. Raises `QuotaExceeded` beyond the key's limits per minute."""
        now = self._clock()
        if self._seconds is not None and (wait_s := self._seconds.wait_s(0.0, now)) > 0:
            limit = self._key.engine_seconds_per_minute
            raise _over(f"{limit:g} engine seconds per minute are used up", wait_s)
        if self._requests is not None:
            if (wait_s := self._requests.wait_s(1.0, now)) > 0:
                limit = self._key.requests_per_minute
                raise _over(f"{limit:g} requests per minute are used up", wait_s)
            self._requests.take(1.0, now)

    def begin_jobs(self, count: int) -> None:
        """Count jobs that wait or run. Raises `QuotaExceeded`, or `InvalidRequest` for more than
        the key may ever have; otherwise `end_request` ends them."""
        most = self._key.max_jobs
        if most and count > most:
            raise InvalidRequest(
                f"the request has {count} jobs; the API key may have {most} at a time"
            )
        if most and self.open_jobs + count > most:
            found = f"{self.open_jobs} jobs wait or run, {count} more would exceed {most}"
            raise _over(found, RETRY_JOBS_S)
        self.open_jobs += count
        metrics.caller_jobs.labels(self.label).inc(count)

    def end_request(self, reason: str, jobs: int, seconds: float) -> None:
        """A request has ended for this reason. Its jobs took so many engine seconds together."""
        self.open_jobs -= jobs
        metrics.caller_requests_total.labels(self.label, metrics.OUTCOME_OF[reason]).inc()
        metrics.caller_jobs.labels(self.label).dec(jobs)
        metrics.caller_engine_seconds_total.labels(self.label).inc(seconds)
        if self._seconds is not None:
            self._seconds.take(seconds, self._clock())

    def _bucket(self, per_minute: float) -> Bucket | None:
        return Bucket(per_minute, self._clock()) if per_minute else None


class KeyUsages:
    """The usage of each name, and its series. Event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_name: dict[str, KeyUsage] = {}
        self._ending: dict[str, KeyUsage] = {}  # of names not in use, while their jobs run
        metrics.register_caller(OTHER)

    def update(self, keys: Iterable[ApiKey]) -> None:
        """These keys are in use from now on. The series of names that are not any more end."""
        found = {key.name: key for key in keys}
        for name in self._by_name.keys() - found.keys():
            gone = self._ending[name] = self._by_name.pop(name)
            gone.label = OTHER
            metrics.unregister_caller(name)
            metrics.caller_jobs.labels(OTHER).inc(gone.open_jobs)
        self._ending = {name: usage for name, usage in self._ending.items() if usage.open_jobs}
        for name, key in found.items():
            if name not in self._by_name:
                self._by_name[name] = self._begin(name)
            self._by_name[name].limit(key)

    def _begin(self, name: str) -> KeyUsage:
        """The usage of a name that comes into use, with the jobs that it has from before."""
        metrics.register_caller(name)
        usage = self._ending.pop(name, None) or KeyUsage(name, self._clock)
        usage.label = name
        if usage.open_jobs:
            metrics.caller_jobs.labels(OTHER).dec(usage.open_jobs)
            metrics.caller_jobs.labels(name).inc(usage.open_jobs)
        return usage

    def of(self, key: ApiKey) -> KeyUsage:
        """The usage of a key; one of its own if the key went out of use a moment ago."""
        return self._by_name.get(key.name) or KeyUsage(OTHER, self._clock)


def _over(text: str, wait_s: float) -> QuotaExceeded:
    return QuotaExceeded(f"over the API key's limit: {text}", retry_after_s=math.ceil(wait_s))
