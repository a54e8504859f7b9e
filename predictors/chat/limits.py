"""How large everything of this room's engine is: context, pages, widths of its passes. From
settings and machine to `Limits`; knows no sequence.
"""

from __future__ import annotations

import torch

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.kv_cache import Limits
from predictors.chat.scheduling import (
    chunk_widths,
    decode_widths,
    fixed_width,
    packed_widths,
    powers_to,
)
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import has_fp8_units
from predictors.settings import InvalidSetting, QwenVLSettings

CPU_CONTEXT, GPU_CONTEXT = 4096, 32768
CPU_SLOTS, GPU_SLOTS = 8, 64
CPU_PAGE, GPU_PAGE = 16, 64  # a GPU's kernels read 64 keys at a time
CPU_CHUNK, GPU_CHUNK = 256, 1536  # on a GPU one pass takes a picture of a megapixel and its text
KV_SHARE = 0.8  # of the memory that is free once the weights are there, without what graphs take
GRAPH_BYTES = 6 * 2**30  # the tower's 48 sizes took 4.4 GB on an H200
LEAST_KV_SHARE = 0.5  # where that leaves little


def max_context(shape: DecoderShape, settings: QwenVLSettings, placement: Placement) -> int:
    """Most tokens of prompt and answer together."""
    usual = GPU_CONTEXT if placement.is_cuda else CPU_CONTEXT
    return min(settings.max_context or usual, shape.max_positions)


def is_deterministic(settings: QwenVLSettings, placement: Placement) -> bool:
    """Whether decoding keeps one width, so that neighbours never change a bit."""
    is_cheap = not placement.is_cuda and placement.dtype == torch.float32
    return settings.deterministic == "on" or (settings.deterministic == "auto" and is_cheap)


def slots_of(settings: QwenVLSettings, placement: Placement) -> int:
    """Sequences that decode together."""
    return settings.slots or (GPU_SLOTS if placement.is_cuda else CPU_SLOTS)


def is_narrow(settings: QwenVLSettings, placement: Placement) -> bool:
    """Whether the decoder's linears are fp8; raises `InvalidSetting` where they can't be."""
    is_wanted = settings.precision == "fp8"
    if is_wanted and placement.is_cuda and not has_fp8_units(placement.device):
        raise InvalidSetting("qwen_vl.precision is fp8, which this GPU has no units for")
    return is_wanted


def precision_of(settings: QwenVLSettings, placement: Placement) -> str:
    """The effective precision as callers see it."""
    return "fp8" if is_narrow(settings, placement) else placement.precision


def free_pages(shape: DecoderShape, page_tokens: int, placement: Placement) -> int | None:
    """KV pages that a GPU has memory for once the weights are there; None on the CPU."""
    if not placement.is_cuda:
        return None
    values = 2 * shape.layers * shape.kv_heads * shape.head_dim * page_tokens
    free, _ = torch.cuda.mem_get_info(placement.device)
    return kv_bytes(free) // (values * placement.dtype.itemsize)


def kv_bytes(free: int) -> int:
    """How many of `free` bytes hold keys and values."""
    return int(max(free * LEAST_KV_SHARE, (free - GRAPH_BYTES) * KV_SHARE))


def limits(shape: DecoderShape, settings: QwenVLSettings, placement: Placement) -> Limits:
    """Shapes of the engine's runner. To be asked once the weights are loaded."""
    slots, is_cuda = slots_of(settings, placement), placement.is_cuda
    page_tokens = settings.page_tokens or (GPU_PAGE if is_cuda else CPU_PAGE)
    chunk = settings.prefill_chunk or (GPU_CHUNK if is_cuda else CPU_CHUNK)
    if is_deterministic(settings, placement):
        # a GPU's graphs are captured before their rows can be compared: one row is the way out
        widths: tuple[int, ...] = (fixed_width(slots),)
        widths = tuple(sorted({1, *widths})) if is_cuda else widths
    else:
        widths = decode_widths(slots) if is_cuda else powers_to(slots)
    return Limits.plan(
        slots=slots,
        page_tokens=page_tokens,
        kv_tokens=settings.kv_tokens,
        max_context=max_context(shape, settings, placement),
        free_pages=free_pages(shape, page_tokens, placement),
        decode_widths=widths,
        chunk_widths=packed_widths(chunk) if is_cuda else chunk_widths(chunk),
    )
