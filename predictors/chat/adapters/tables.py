"""The device's tables of all adaptable linears of a chat model: a fixed number of slots, each with
room for one adapter.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.adapters.adapter import ChatAdapter
from predictors.chat.adapters.places import LinearPlace, LinearPlaces
from predictors.compute.device.placement import Placement, to_device
from predictors.compute.low_rank import LowRank, LowRankTable


class AdapterTables:
    """`slots` x `max_rank` rank rows per linear, in the dtype of the passes; all zero at first.
    Engine thread only."""

    def __init__(
        self, places: LinearPlaces, slots: int, max_rank: int, placement: Placement
    ) -> None:
        self.slots, self.max_rank = slots, max_rank
        self._places = places
        self._placement = placement
        self._keys = [("", "")] * slots
        num_rows, device, dtype = slots * max_rank, placement.device, placement.dtype
        self._tables = {
            place.layer: LowRankTable(place.sizes, num_rows, device, dtype)
            for place in {each.layer: each for each in places.values()}.values()
        }

    @property
    def num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables.values())

    def of_layer(self, layer: nn.Module) -> LowRankTable:
        return self._tables[layer]

    def rank_rows(self, slot: int) -> Tensor:
        """The rank rows (max_rank,) int64 of a slot, on the CPU."""
        return torch.arange(slot * self.max_rank, (slot + 1) * self.max_rank)

    def repeated(self, weights: Tensor) -> Tensor:
        """`weights` (rows, slots), each for all rank rows of its slot, in the dtype of the passes:
        (rows, rank rows). Can be captured."""
        wide = weights.to(self._placement.dtype)[:, :, None]
        return wide.expand(-1, -1, self.max_rank).flatten(1)

    def order(self, slot: int) -> tuple[str, str]:
        """Sorts slots as `AdapterMix` sorts their adapters."""
        return self._keys[slot]

    @torch.no_grad()
    def write(self, slot: int, adapter: ChatAdapter) -> None:
        """Overwrite a slot with an adapter of at most `max_rank`. Work that was launched before
        still reads the old one: both are on one stream."""
        self._keys[slot] = (adapter.digest, adapter.name)
        by_layer: dict[nn.Module, dict[int, LowRank]] = defaultdict(dict)
        for name, change in adapter.changes.items():
            place = self._places[name]
            by_layer[place.layer][place.part] = _padded(change, place)
        rows = to_device(self.rank_rows(slot), self._placement)
        for layer, table in self._tables.items():
            table.write(rows, by_layer.get(layer, {}))

    @torch.no_grad()
    def fill_for_warm_up(self) -> None:
        """Small values in all slots, no two rows alike: zeros would hide a broken pass."""
        for table in self._tables.values():
            for part in (table.down, table.up):
                values = torch.arange(part.numel(), device=part.device) % 1021 - 510
                part.copy_(values.view(part.shape) / (510 * part.shape[-1]))

    @torch.no_grad()
    def clear(self) -> None:
        for table in self._tables.values():
            table.down.zero_()
            table.up.zero_()


def _padded(change: LowRank, place: LinearPlace) -> LowRank:
    """`change` with zeros for the padding of its layer."""
    more_in = place.sizes.in_features - change.down.shape[1]
    more_out = place.sizes.part_features[place.part] - change.up.shape[0]
    if not more_in and not more_out:
        return change
    return LowRank(F.pad(change.down, (0, more_in)), F.pad(change.up, (0, 0, 0, more_out)))
