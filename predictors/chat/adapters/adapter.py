"""A low-rank adapter of a chat model on the host, ready to be copied into the device's tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from predictors.chat.adapters.peft import PeftAdapter
from predictors.chat.tensors import VISION, component_of
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.placement import Placement
from predictors.compute.low_rank import AdapterWeights, LowRank, on_host
from predictors.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class ChatAdapter(AdapterWeights):
    """One adapter in the model's dtype. `changes` are by the linear's name as the hub has it,
    without `.weight`. Equal only to itself. Any thread."""

    summary: AdapterSummary
    is_of_language: bool = field(init=False)
    is_of_vision: bool = field(init=False)

    @classmethod
    def of(cls, name: str, stored: PeftAdapter, placement: Placement) -> ChatAdapter:
        """An adapter as read, in the dtype of `placement`, and in pinned memory for a GPU. Raises
        `InvalidRequest` if that dtype is too narrow."""
        changes = {}
        for linear, arrays in stored.changes.items():
            wide = LowRank(torch.from_numpy(arrays.down), torch.from_numpy(arrays.up))
            made = on_host(wide, placement.device, placement.dtype)
            if not (made.down.isfinite().all() and made.up.isfinite().all()):
                raise InvalidRequest(f"{linear}: the adapter is beyond {placement.precision}")
            changes[linear] = made
        return cls(name, stored.digest, changes, stored.summary(name))

    def __post_init__(self) -> None:
        is_vision = [component_of(name) == VISION for name in self.changes]
        object.__setattr__(self, "is_of_vision", any(is_vision))
        object.__setattr__(self, "is_of_language", not all(is_vision))
