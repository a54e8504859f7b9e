"""Compares the memory that a server with warm models uses at rest with the limit at which the
overload gate refuses: where it uses that much, no request could ever pass, and it is not ready.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Protocol

from predictors.observe.memory_use import find_memory_use
from predictors.settings import OverloadSettings

RELEASE = 0.9  # an action of the gate ends below this share of the pressure that began it
MIB = 2**20

log = logging.getLogger(__name__)


class WarmedModel(Protocol):
    async def healthy(self) -> bool: ...


class MemoryAtRest:
    """Asked until the memory once left room for requests. Event loop only."""

    def __init__(self, settings: OverloadSettings) -> None:
        self.memory = find_memory_use(settings.memory_bytes)
        self._refuse_at = settings.refuse_at
        self._most = settings.refuse_at * self.memory.limit
        self.is_known = self._most <= 0
        """It has fitted, or nothing is refused for its memory."""
        self.fault = ""
        """Why no request can pass, with both numbers; empty if one can or it is not known yet."""

    async def fits(self, models: Collection[WarmedModel]) -> bool:
        """False once all `models` are warm and the memory leaves room for no request."""
        if self.is_known or not all([await model.healthy() for model in models]):
            return True
        used = self.memory.read()
        self.is_known = used < self._most
        if self.is_known:
            self._note_room(used)
        elif not self.fault:
            limit = _mib(self.memory.limit)
            self.fault = (
                f"the server uses {_mib(used)} at rest, and refuses requests from "
                f"{self._refuse_at:g} of its limit of {limit}: raise PREDICTORS_OVERLOAD_"
                f"MEMORY_BYTES above {_mib(used / (RELEASE * self._refuse_at))}, or the memory of "
                "the container"
            )
            log.critical("not ready: %s", self.fault)
        return self.is_known

    def _note_room(self, used: float) -> None:
        if self.fault:
            log.warning("ready: the server uses %s at rest now", _mib(used))
            self.fault = ""
        if used >= RELEASE * self._most:
            log.warning(
                "the server uses %s at rest: once it refuses requests, which it does from %s, it "
                "begins again only below %s",
                *(_mib(each) for each in (used, self._most, RELEASE * self._most)),
            )


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / MIB:.0f} MiB"
