"""The paths that a GPU takes, in memory of the host and without graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from predictors.chat import choosing, step_inputs


@dataclass(frozen=True)
class GpuOnCpu:
    """The placement of a GPU without graphs."""

    device = torch.device("cpu")
    dtype = torch.float32
    compile = "off"
    is_cuda = True


def without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(shape: Any, dtype: torch.dtype, _placement: Any) -> Tensor:
        return torch.full(shape, 7, dtype=dtype)  # as memory that was used before

    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    for module in (choosing, step_inputs):
        monkeypatch.setattr(module, "staging_memory", filled)
