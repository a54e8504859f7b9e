"""Waiting for a model that may have no pod: the bounds of what waits, the calls that wake the
model, and the probe that ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator

from predictors import metrics
from predictors.cluster.api import ApiRefusal, ApiUnavailable
from predictors.errors import Draining, Overloaded, WakeTimeout
from predictors.settings import ActivatorSettings

log = logging.getLogger(__name__)

UNKNOWN_START_S = 30.0
"""Guess of the time of a start before one was seen, for `Retry-After`."""
RETRY_SOON_S = 2.0


class WaitingRoom:
    """Requests that wait for one model, the bytes of their bodies, and those of gRPC messages on
    their way to it. Event loop only.

    `is_ready` asks the model; it returns False for every failure. `raise_from_zero` sets the
    replicas to 1 if they are 0, and returns True if it did; it may raise `ApiUnavailable` and
    `ApiRefusal`. Both are called only while requests wait.
    """

    def __init__(
        self,
        model: str,
        settings: ActivatorSettings,
        is_ready: Callable[[], Awaitable[bool]],
        raise_from_zero: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._settings = settings
        self._is_ready = is_ready
        self._raise_from_zero = raise_from_zero
        self._clock = clock
        self._waiting: set[asyncio.Future[None]] = set()
        self._waking: asyncio.Task[None] | None = None
        self._began = 0.0
        self._looked_at = -math.inf  # seconds of `clock`: at the replicas
        self._scale_failure = ""
        self._start_s = UNKNOWN_START_S
        self._num_bytes = 0
        self._refusal: str | None = None
        self._held = metrics.activator_requests_held.labels(model)
        self._held_bytes = metrics.activator_held_bytes.labels(model)
        self._seconds = metrics.activator_wait_seconds.labels(model)
        self._wakes = metrics.activator_wakes_total.labels(model)
        self._scale_failures = metrics.activator_scale_failures_total.labels(model)

    @property
    def is_waking(self) -> bool:
        """Requests wait, so that the model had no endpoint a moment ago."""
        return bool(self._waiting)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def retry_after_s(self) -> float:
        """Estimate of the seconds until the model is ready, from its last start."""
        elapsed_s = self._clock() - self._began if self.is_waking else 0.0
        return max(RETRY_SOON_S, self._start_s - elapsed_s)

    async def until_ready(self, deadline: float, came: float) -> None:
        """Return once the model has a ready endpoint. The request `came` then, and has until
        `deadline`, both seconds of `time.monotonic`.

        Raises `Overloaded` if too many wait, `WakeTimeout` at `deadline`, `Draining` after
        `refuse`, and what one of the two calls raises that it should not.
        """
        if self._refusal is not None:
            raise Draining(self._refusal)
        if len(self._waiting) >= self._settings.max_held:
            raise Overloaded(
                f"{self._model} is starting and {self._settings.max_held} requests wait for it "
                "already, which is the limit; try again later",
                retry_after_s=self.retry_after_s(),
            )
        began = self._clock()
        with self._place() as ready:
            try:
                async with asyncio.timeout(max(0.0, deadline - began)):
                    await ready
            except TimeoutError as error:
                raise WakeTimeout(
                    f"{self._model} did not start within {round(deadline - came, 1):g} s of this"
                    " request; its start goes on, try again later",
                    retry_after_s=self.retry_after_s(),
                ) from error
            finally:
                self._seconds.observe(self._clock() - began)

    def charge(self, num_bytes: int) -> None:
        """Count bytes that are held for the model. Raises `Overloaded` if they would be too many;
        they are not counted then."""
        most = self._settings.max_held_bytes
        if self._num_bytes + num_bytes > most:
            raise Overloaded(
                f"with {num_bytes} bytes more, what is held for {self._model} would have over "
                f"{most} bytes, which is the limit; try again later",
                retry_after_s=self.retry_after_s() if self.is_waking else RETRY_SOON_S,
            )
        self.release(-num_bytes)

    def release(self, num_bytes: int) -> None:
        """Bytes that were charged are held no more."""
        self._num_bytes -= num_bytes
        self._held_bytes.set(self._num_bytes)

    def refuse(self, message: str) -> None:
        """End every wait with `Draining`, and each later one at once."""
        self._refusal = message
        self._end_waits(Draining(message))

    @contextlib.contextmanager
    def _place(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the model is ready. The model is woken while there is one."""
        ready = asyncio.get_running_loop().create_future()
        self._waiting.add(ready)
        self._held.inc()
        if self._waking is None or self._waking.done():
            self._began = self._clock()
            self._waking = asyncio.create_task(self._wake())
            self._waking.add_done_callback(self._wake_ended)
        try:
            yield ready
        finally:
            self._held.dec()
            self._waiting.discard(ready)
            if not self._waiting and self._waking is not None:
                self._waking.cancel()
                self._waking = None

    async def _wake(self) -> None:
        scaling, was_away = asyncio.create_task(self._keep_raised()), False
        try:
            while True:
                await asyncio.sleep(self._settings.probe_s)
                if scaling.done():
                    scaling.result()
                if await self._is_ready():
                    break
                was_away = True
        finally:
            scaling.cancel()
        seconds = self._clock() - self._began
        if was_away:  # else a connection failed, and nothing was started
            self._start_s = seconds
        log.info("%s is ready after %.1f s, %d wait", self._model, seconds, len(self._waiting))
        self._end_waits(None)

    def _wake_ended(self, waking: asyncio.Task[None]) -> None:
        """After a fault of ours nothing would wake the model for those who wait."""
        if not waking.cancelled() and (error := waking.exception()) is not None:
            self._end_waits(error)

    def _end_waits(self, error: BaseException | None) -> None:
        """Requests that come from now on do not wait with those that leave."""
        ended, self._waiting = self._waiting, set()
        for ready in ended:
            if ready.done():
                continue
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)

    async def _keep_raised(self) -> None:
        """Look again and again: an autoscaler may set the replicas back before it has seen the
        requests that wait. Callers who come and leave do not make it look more often."""
        while True:
            await asyncio.sleep(self._looked_at + self._settings.scale_s - self._clock())
            self._looked_at = self._clock()
            try:
                if await self._raise_from_zero():
                    self._wakes.inc()
                    log.info("%s is woken: its replicas were 0 and are 1", self._model)
                self._scale_failure = ""
            except (ApiUnavailable, ApiRefusal) as error:
                self._scale_failures.inc()
                if str(error) != self._scale_failure:  # once, not at every look
                    self._scale_failure = str(error)
                    log.error("%s can't be woken by the scale API: %s", self._model, error)
            self._looked_at = self._clock()
