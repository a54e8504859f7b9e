"""The paths that a GPU takes, in memory of the host and without graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from predictors.chat import choosing, limits, runner, step_inputs
from predictors.chat.engine import ChatEngine
from predictors.chat.inputs import ChatPreparer
from predictors.chat.sampling import GREEDY
from predictors.compute.device.placement import LaunchMark, Placement
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.settings import ImageLimits, QwenVLSettings
from tests import triton_interpreter
from tests.chat.room import Room

assert triton_interpreter


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


class FusedPlacement(Placement):
    """As `GpuOnCpu`, for whole engines."""

    @property
    def is_cuda(self) -> bool:
        return True


def open_fused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Room:
    """An engine with the passes of a GPU, in Triton's interpreter, loaded and warm: two sequences
    decode together, and a pass takes up to 32 rows of prompts."""
    from predictors.chat.decoder import fused

    without_pinned_memory(monkeypatch)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**34, 2**35))
    monkeypatch.setattr(runner, "mark_launched", lambda placement: LaunchMark(None))
    # the interpreter takes milliseconds for each program: no parts of keys, no kernels of one row
    monkeypatch.setattr(fused, "splits_for", lambda rows: 1)
    monkeypatch.setattr(fused, "is_available", lambda: False)  # of kernels for Hopper
    monkeypatch.setattr(limits, "decode_widths", lambda slots: (slots,))
    monkeypatch.setattr(runner, "ONE_PER_SAMPLER", (GREEDY,))
    small = {"slots": 2, "max_context": 256, "page_tokens": 16, "prefill_chunk": 32}
    more = {"kv_tokens": 2048, "max_pixels": 112 * 112}
    chosen = QwenVLSettings(**{**small, **more, **settings})
    placement = FusedPlacement(torch.device("cpu"), torch.float32, "off")
    model = Qwen25VLModel(checkpoint)
    engine = ChatEngine("fused", model, chosen, placement)
    engine.load()
    engine.warm(lambda *_: None)
    given = "fused", model, chosen, ImageLimits(), lambda: engine.max_context
    return Room(model, ChatPreparer(*given, on_device=False), engine)
