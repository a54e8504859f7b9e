"""Decides which adapter lies in which slot of the device's tables: one that running jobs use stays,
the others are kept until their slot is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from predictors.chat.adapters.adapter import ChatAdapter
from predictors.chat.adapters.changes import SlotScales
from predictors.chat.adapters.mix import UNADAPTED, AdapterMix
from predictors.chat.adapters.places import LinearPlaces
from predictors.chat.adapters.tables import AdapterTables
from predictors.compute.device.placement import Placement


class AdapterSlots:
    """`count` slots of the tables, which `make_tables` makes. Engine thread only, but for
    `describe`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._tables: AdapterTables | None = None
        self._empty = list(range(count - 1, -1, -1))
        self._slot_of: OrderedDict[ChatAdapter, int] = OrderedDict()  # least recently used first
        self._users: dict[ChatAdapter, int] = {}  # jobs, of the adapters that have any
        self._mixes: dict[Hashable, AdapterMix] = {}

    def make_tables(
        self, places: LinearPlaces, max_rank: int, placement: Placement
    ) -> AdapterTables | None:
        """The tables, filled for the warm-up until `clear`; None for no slots."""
        if self.count:
            self._tables = AdapterTables(places, self.count, max_rank, placement)
            self._tables.fill_for_warm_up()
        return self._tables

    def clear(self) -> None:
        if self._tables is not None:
            self._tables.clear()

    def has_room(self, mix: AdapterMix) -> bool:
        """True if `hold` would have a slot for each adapter of `mix`."""
        wanted = [adapter for adapter, _ in mix.scales]
        missing = sum(adapter not in self._slot_of for adapter in wanted)
        idle = sum(each not in self._users and each not in wanted for each in self._slot_of)
        return missing <= len(self._empty) + idle

    def hold(self, owner: Hashable, mix: AdapterMix) -> tuple[SlotScales, SlotScales]:
        """Put the adapters of `mix`, for which there is room, into the tables, and keep them there
        until `owner` is released. Returns those of the language model and of the vision tower."""
        wanted = [adapter for adapter, _ in mix.scales]
        for adapter in wanted:
            if adapter not in self._slot_of:
                self._place(adapter, wanted)
            self._slot_of.move_to_end(adapter)
        self._mixes[owner] = mix
        for adapter in wanted:
            self._users[adapter] = self._users.get(adapter, 0) + 1
        scales = tuple((self._slot_of[adapter], scale) for adapter, scale in mix.scales)
        return scales if mix.language_key else (), scales if mix.vision_key else ()

    def release(self, owner: Hashable) -> None:
        """No-op for an owner that holds nothing."""
        for adapter, _ in self._mixes.pop(owner, UNADAPTED).scales:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]

    def close(self) -> None:
        self._users.clear()
        self._mixes.clear()
        self._slot_of.clear()
        self._tables = None

    def describe(self) -> dict[str, int]:
        """The running jobs by the names of the adapters that have any. Any thread."""
        return {adapter.name: count for adapter, count in self._users.copy().items()}

    def _place(self, adapter: ChatAdapter, wanted: list[ChatAdapter]) -> None:
        if not self._empty:
            oldest = next(
                each for each in self._slot_of if each not in self._users and each not in wanted
            )
            self._empty.append(self._slot_of.pop(oldest))
        assert self._tables is not None
        self._tables.write(self._empty[-1], adapter)  # if it raises, the slot counts as empty
        self._slot_of[adapter] = self._empty.pop()
