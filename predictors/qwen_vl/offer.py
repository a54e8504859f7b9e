"""How much a checkpoint can offer on a machine: context, determinism, KV pages. Arithmetic on
settings and sizes; knows no request and holds nothing.
"""

from __future__ import annotations

import torch

from predictors.compute.device import Placement
from predictors.qwen_vl.modules.decoder import TextShape
from predictors.settings import InvalidSetting, QwenVLSettings

CPU_CONTEXT, GPU_CONTEXT = 4096, 32768
KV_SHARE = 0.8  # of the memory that is free once the weights are there


def max_context(text: TextShape, settings: QwenVLSettings, placement: Placement) -> int:
    """Most tokens of prompt and answer together."""
    usual = GPU_CONTEXT if placement.is_cuda else CPU_CONTEXT
    return min(settings.max_context or usual, text.max_positions)


def is_deterministic(settings: QwenVLSettings, placement: Placement) -> bool:
    """Whether decoding keeps one width, so that neighbours never change a bit."""
    if settings.deterministic not in {"auto", "on", "off"}:
        raise InvalidSetting(
            f"qwen_vl.deterministic must be auto, on or off, not {settings.deterministic!r}"
        )
    is_cheap = not placement.is_cuda and placement.dtype == torch.float32
    return settings.deterministic == "on" or (settings.deterministic == "auto" and is_cheap)


def free_pages(text: TextShape, page_tokens: int, placement: Placement) -> int | None:
    """KV pages that a GPU has memory for once the weights are there; None on the CPU."""
    if not placement.is_cuda:
        return None
    values = 2 * text.layers * text.kv_heads * text.head_dim * page_tokens
    free, _ = torch.cuda.mem_get_info(placement.device)
    return int(free * KV_SHARE) // (values * placement.dtype.itemsize)
