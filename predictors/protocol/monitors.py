"""The monitors of the overload gate, and the timer that reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from predictors import metrics
from predictors.protocol.http.connection_limits import ConnectionLimit
from predictors.protocol.overload import CLOSE, REFUSE, REFUSE_LARGE, Monitor
from predictors.protocol.registry import Registry

INTERVAL_S = 0.1
MEMORY_TICKS = 10  # the memory is read at each so many ticks
LAG_WEIGHT = 0.2  # of a new reading in the moving average of the loop's lag
MAX_LAG = 2.0  # limits that one reading may count, so that one long pause begins no action


def watch_overload(
    registry: Registry, connections: ConnectionLimit, on_ready: Callable[[], object]
) -> Callable[[], None]:
    """Begin to read the monitors, on the running loop. `on_ready` is called once, when all models
    are warm and the memory leaves room for requests. Returns a function that ends it."""
    lag = LoopLag(registry.settings.overload.loop_lag_s, registry.overload.update)
    registry.overload.watch(*make_monitors(registry, connections, lag))
    registry.loop_overdue_s = lag.overdue_s
    lag.start()
    waiting = asyncio.create_task(wait_ready(registry, on_ready))

    def stop() -> None:
        lag.stop()
        waiting.cancel()

    return stop


async def wait_ready(registry: Registry, on_ready: Callable[[], object]) -> None:
    """Ask until the server is ready, as a probe does, so that a fault is also logged where no probe
    comes; then call `on_ready`."""
    is_ready = False
    while not is_ready:
        await asyncio.sleep(INTERVAL_S)
        is_ready = await registry.all_ready()
    on_ready()


def make_monitors(registry: Registry, connections: ConnectionLimit, lag: LoopLag) -> list[Monitor]:
    """The monitors that have a limit."""
    settings, most = registry.settings.overload, connections.limit
    memory = registry.overload.at_rest.memory
    found = [
        Monitor("connections", share(lambda: connections.num_open, most), {CLOSE}),
        Monitor("busy_connections", share(lambda: connections.num_busy, most), {CLOSE, REFUSE}),
        Monitor("bodies", registry.bytes_in_flight.pressure, {CLOSE, REFUSE_LARGE}),
    ]
    if memory.limit:
        pressure = share(every(MEMORY_TICKS, memory.read), memory.limit)
        found.append(Monitor("memory", pressure, {CLOSE, REFUSE}))
    if settings.loop_lag_s:
        found.append(Monitor("loop_lag", lag.pressure, {CLOSE, REFUSE}))
    if settings.prepare_backlog:
        waiting = share(lambda: registry.backlog, settings.prepare_backlog)
        found.append(Monitor("backlog", waiting, {CLOSE, REFUSE}))
    return found


class LoopLag:
    """The delay of an event loop, read by a timer that calls `on_tick` each `INTERVAL_S`."""

    def __init__(
        self,
        limit_s: float,
        on_tick: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._on_tick = on_tick
        self._clock = clock
        self._due = clock() + INTERVAL_S
        self._timer: asyncio.TimerHandle | None = None
        self.average_s = 0.0

    def overdue_s(self) -> float:
        """Seconds since the loop should have run. Any thread."""
        return max(0.0, self._clock() - self._due)

    def pressure(self) -> float:
        return self.average_s / self._limit_s

    def start(self) -> None:
        """Begin on the running loop."""
        self._due = self._clock() + INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._fired)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def tick(self) -> None:
        """Count one reading, and call `on_tick`."""
        overdue_s = self.overdue_s()
        metrics.event_loop_lag_seconds.observe(overdue_s)
        late_s = min(overdue_s, MAX_LAG * self._limit_s)
        self.average_s += LAG_WEIGHT * (late_s - self.average_s)
        self._due = self._clock() + INTERVAL_S
        self._on_tick()

    def _fired(self) -> None:
        self.tick()
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._fired)


def share(reading: Callable[[], float], limit: float) -> Callable[[], float]:
    """A pressure: the reading as a share of its limit."""
    return lambda: reading() / limit


def every(times: int, reading: Callable[[], float]) -> Callable[[], float]:
    """`reading` at each so many calls, and its last value between them."""
    left, last = 0, 0.0

    def read() -> float:
        nonlocal left, last
        if left == 0:
            left, last = times, reading()
        left -= 1
        return last

    return read
