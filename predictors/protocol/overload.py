"""The overload gate: monitors read how near the process is to its limits, and actions follow.

Under pressure each response closes its connection first; then new requests are refused before
their bodies are read. A request reads a flag and no more: monitors are read by a timer, 10 times a
second. Probes and scrapes are never refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from predictors import metrics
from predictors.errors import NotReady, ServerOverloaded
from predictors.protocol.bytes_in_flight import UNCOUNTED_BYTES
from predictors.protocol.memory_at_rest import RELEASE, MemoryAtRest
from predictors.settings import OverloadSettings

log = logging.getLogger(__name__)

CLOSE, REFUSE_LARGE, REFUSE = metrics.OVERLOAD_ACTIONS


@dataclass(frozen=True, slots=True)
class Monitor:
    """A reading of the process that has a limit. `pressure` is the part of the limit in use, and
    may be above 1."""

    name: str
    """Metric label, one of `metrics.OVERLOAD_MONITORS`."""
    pressure: Callable[[], float]
    actions: Collection[str]
    """The actions that its pressure begins."""


class OverloadGate:
    """The actions that are on. Event loop only, but for the flags, which any thread may read."""

    def __init__(self, settings: OverloadSettings) -> None:
        self._begin_at = {
            CLOSE: settings.close_at,
            REFUSE_LARGE: settings.refuse_at,
            REFUSE: settings.refuse_at,
        }
        self.at_rest = MemoryAtRest(settings)
        self._monitors: list[Monitor] = []
        self._active: dict[str, str] = {}  # monitor that began it, by action
        self.closes = False
        """True while each response closes its connection."""
        self.is_refusing = False
        """True while some requests are refused; `check` says which."""
        self._refuses_all = False

    def watch(self, *monitors: Monitor) -> None:
        self._monitors += monitors

    # -- requests ----------------------------------------------------------------------------------
    def check(self, headers: Mapping[str, str]) -> None:
        """Raise as `check_size` if a request with these headers is refused now."""
        self.check_size(_declared_bytes(headers))

    def check_size(self, num_bytes: float) -> None:
        """Raise `ServerOverloaded` if a request with a body of this size is refused now, and
        `NotReady` if all are until the server has more memory."""
        if self._refuses_all and self.at_rest.fault:
            raise NotReady(self.at_rest.fault)
        if self._refuses_all or (self.is_refusing and num_bytes > UNCOUNTED_BYTES):
            action = REFUSE if self._refuses_all else REFUSE_LARGE
            raise ServerOverloaded(
                f"the server is overloaded ({self._active[action]}); try again later"
            )

    # -- the timer ---------------------------------------------------------------------------------
    def update(self) -> None:
        """Read all monitors; begin and end actions."""
        pressures = [(monitor, monitor.pressure()) for monitor in self._monitors]
        for monitor, pressure in pressures:
            shown = min(1.0, max(0.0, pressure))
            metrics.overload_pressure.labels(monitor.name).set(shown)
        for action, begin_at in self._begin_at.items():
            of_action = [(p, m.name) for m, p in pressures if action in m.actions]
            highest, name = max(of_action, default=(0.0, ""))
            is_on = action in self._active
            if 0 < begin_at <= highest and not is_on:
                self._active[action] = name
                log.warning("overload: %s begins, %s is at %.0f %%", action, name, 100 * highest)
            elif is_on and highest < RELEASE * begin_at:
                del self._active[action]
                log.info("overload: %s ends", action)
            elif is_on:
                self._active[action] = name
            metrics.overload_active.labels(action).set(action in self._active)
        self.closes = CLOSE in self._active
        self._refuses_all = REFUSE in self._active
        self.is_refusing = self._refuses_all or REFUSE_LARGE in self._active


def _declared_bytes(headers: Mapping[str, str]) -> float:
    """The size of a body by its head, which the parser has checked; one of unknown size is
    large."""
    if "transfer-encoding" in headers:
        return float("inf")
    return int(headers.get("content-length", 0))
