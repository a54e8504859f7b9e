"""Settings of the overload gate: the limits of its monitors, and when it acts."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class OverloadSettings(SettingsGroup):
    """Protection of the process. Pressure is a reading as a share of its limit: of memory,
    connections, bodies in flight, loop lag and backlog."""

    section = "overload"

    close_at: float = bounded(0.9, most=1.0)
    """Pressure of any monitor from which each HTTP response closes its connection. 0: never."""
    refuse_at: float = bounded(0.97, most=1.0)
    """Pressure from which new requests are refused with 503 and `Retry-After`, before their bodies
    are read; probes and `/metrics` never are. Bodies in flight (`server.max_bytes_in_flight`)
    refuse only requests with more than 64 KiB, and of the connections (`server.max_connections`)
    only those with a request count: idle ones make room for new ones. 0: never."""
    memory_bytes: int = 0
    """Memory at which the pressure is 1. Memory that the system can take back, such as cached
    files, does not count. A server that reaches `refuse_at` of it at rest is not ready. 0: the
    memory limit of the container; without one, memory is not watched."""
    loop_lag_s: float = 0.5
    """Delay of the event loop, as a moving average, at which the pressure is 1. 0: not watched."""
    prepare_backlog: int = 256
    """Items that wait for a thread or worker process to parse, prepare or encode them, at which the
    pressure is 1. 0: not watched."""
