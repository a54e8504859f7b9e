"""Sizes of a chat engine: context, KV pages, and the fixed widths of its passes, from settings,
machine and model.

Every pass runs in a width from a short list, so that all of them can be compiled or captured while
warming.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from predictors.chat.adapters.places import LinearPlaces
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.memory import (
    GPU_CONTEXT,
    GPU_PAGE,
    GPU_SLOTS,
    GRAPH_PATCHES,
    graph_sets,
    has_room_for_mixed,
    kv_bytes,
)
from predictors.chat.model import ChatModel
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import Controls
from predictors.chat.vision.pixels import DEFAULT_MAX_PIXELS, PicturePreparation
from predictors.compute.checkpoint.summary import CONTEXT_BYTES, size_text
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import has_fp8_units
from predictors.errors import InvalidRequest
from predictors.protocol.films.decode import EXTRA
from predictors.serving.turns import num_spare
from predictors.settings import InvalidSetting, QwenVLSettings

CPU_CONTEXT, CPU_SLOTS, CPU_PAGE = 4096, 8, 16
CPU_CHUNK, GPU_CHUNK = 256, 1536  # on a GPU one pass takes a picture of a megapixel and its text
KEPT_PART = 16
PACK_ALIGN = 16
"""Each prompt in a packed pass starts at a multiple of this many rows."""
MOST_WASTE = 0.12
"""Largest share of a packed pass's rows that exist only because its width is fixed."""

MOST_BIASED = 1024
"""Most tokens of a logit_bias. Each slot has room for so many on the device."""
MOST_STOP_TOKENS = 128
"""Most `stop_token_ids`."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Shapes of a runner. Widths ascend; `num_pages` does not count the scratch page."""

    slots: int
    page_tokens: int
    num_pages: int
    max_context: int
    decode_widths: tuple[int, ...]
    chunk_widths: tuple[int, ...]
    """Of passes over prompts."""
    spare_slots: int = 0
    """More slots, for callers who hold less than their share while others hold all. Each takes five
    bytes per word of the vocabulary: 0.8 MB for Qwen2.5-VL."""
    mixed_widths: tuple[int, ...] = ()
    """Of passes over prompts that may have a decode step's rows beside them."""

    @property
    def kept_pages(self) -> int:
        """Pages that a caller who holds some already leaves for others: one context, and no more
        than a sixteenth of all."""
        return min(self.pages_per_slot, self.num_pages // KEPT_PART)

    @property
    def pages_per_slot(self) -> int:
        return -(-self.max_context // self.page_tokens)


def plan_limits(
    shape: DecoderShape,
    settings: QwenVLSettings,
    placement: Placement,
    graph_patches: int = GRAPH_PATCHES,
    loaded: int = 0,
) -> EngineLimits:
    """The limits of an engine whose weights are loaded: on a GPU the free memory counts, or the
    rest of the model's part, of which `loaded` bytes are taken. `graph_patches` are those of the
    largest picture with a graph of its own."""
    slots, is_cuda = num_slots(settings, placement), placement.is_cuda
    page_tokens = settings.page_tokens or (GPU_PAGE if is_cuda else CPU_PAGE)
    chunk = settings.prefill_chunk or (GPU_CHUNK if is_cuda else CPU_CHUNK)
    if is_deterministic(settings, placement):
        # a GPU's graphs are captured before their rows can be compared: width 1 is the fallback
        widths: tuple[int, ...] = (fixed_width(slots),)
        widths = tuple(sorted({1, *widths})) if is_cuda else widths
    else:
        widths = decode_widths(slots) if is_cuda else powers_to(slots)
    context = max_context(shape, settings, placement)
    sets, free = graph_sets(settings), free_bytes(settings, placement, loaded)
    prompts = packed_widths(chunk) if is_cuda else chunk_widths(chunk)
    return EngineLimits(
        slots=slots,
        page_tokens=page_tokens,
        num_pages=num_pages(
            contexts=slots + (1 if is_cuda else num_spare(slots)),
            page_tokens=page_tokens,
            kv_tokens=settings.kv_tokens,
            max_context=context,
            free_pages=free_pages(shape, page_tokens, placement, free, graph_patches, sets),
        ),
        max_context=context,
        decode_widths=widths,
        chunk_widths=prompts,
        spare_slots=num_spare(slots),
        mixed_widths=prompts if mixes_rows(settings, placement, free) else (),
    )


def max_context(shape: DecoderShape, settings: QwenVLSettings, placement: Placement) -> int:
    """Most tokens of prompt and answer together."""
    usual = GPU_CONTEXT if placement.is_cuda else CPU_CONTEXT
    return min(settings.max_context or usual, shape.max_positions)


def num_slots(settings: QwenVLSettings, placement: Placement) -> int:
    return settings.slots or (GPU_SLOTS if placement.is_cuda else CPU_SLOTS)


def is_deterministic(settings: QwenVLSettings, placement: Placement) -> bool:
    """True if decoding keeps one width, so that other sequences never change a bit."""
    is_cheap = not placement.is_cuda and placement.dtype == torch.float32
    return settings.deterministic == "on" or (settings.deterministic == "auto" and is_cheap)


def shares_prefixes(settings: QwenVLSettings, placement: Placement) -> bool:
    """True if prompts share pages. `auto`: on a GPU, unless answers must not depend on earlier
    requests (how a prompt is cut into passes can change last bits)."""
    is_auto = settings.prefix_cache == "auto" and placement.is_cuda
    is_auto = is_auto and not is_deterministic(settings, placement)
    return settings.prefix_cache == "on" or is_auto


def mixes_rows(settings: QwenVLSettings, placement: Placement, free: int | None) -> bool:
    """True if a pass may have rows of prompts and rows that decode: where prompts share passes, the
    rows of a decode step are multiplied as those of prompts are, and the `free` bytes have room for
    the graphs. With fp8 weights a decode step does not quantise its rows."""
    is_wanted = settings.mixed_passes and placement.is_cuda and settings.precision != "fp8"
    is_wanted = is_wanted and not is_deterministic(settings, placement)
    return is_wanted and (free is None or has_room_for_mixed(free))


def uses_fp8(settings: QwenVLSettings, placement: Placement) -> bool:
    """True if the decoder's linears are fp8; raises `InvalidSetting` where they can't be."""
    is_wanted = settings.precision == "fp8"
    if is_wanted and placement.is_cuda and not has_fp8_units(placement.device):
        raise InvalidSetting("qwen_vl.precision is fp8, which this GPU has no units for")
    return is_wanted


def precision_of(settings: QwenVLSettings, placement: Placement) -> str:
    return "fp8" if uses_fp8(settings, placement) else placement.precision


# -- pages -----------------------------------------------------------------------------------------
def num_pages(
    *, contexts: int, page_tokens: int, kv_tokens: int, max_context: int, free_pages: int | None
) -> int:
    """Pages for `kv_tokens` (0: so many contexts), at most `free_pages` (None: any)."""
    if kv_tokens:
        return -(-kv_tokens // page_tokens)
    wanted = contexts * -(-max_context // page_tokens)
    return wanted if free_pages is None else max(1, min(wanted, free_pages))


def free_bytes(settings: QwenVLSettings, placement: Placement, loaded: int = 0) -> int | None:
    """Memory that a GPU has for pages and graphs; None on the CPU. With `qwen_vl.memory_fraction`
    no more than that part of it, less what is `loaded` and the CUDA context's.

    Raises `InvalidSetting` where nothing is left of that part."""
    if not placement.is_cuda:
        return None
    free, whole = torch.cuda.mem_get_info(placement.device)
    if not settings.memory_fraction:
        return int(free)
    share, taken = int(settings.memory_fraction * whole), loaded + CONTEXT_BYTES
    if share <= taken:
        raise InvalidSetting(
            f"PREDICTORS_QWEN_VL_MEMORY_FRACTION {settings.memory_fraction:g} of "
            f"{size_text(whole)} is {size_text(share)}, and the weights and the CUDA context take "
            f"{size_text(taken)}; raise it"
        )
    return min(int(free), share - taken)


def free_pages(
    shape: DecoderShape,
    page_tokens: int,
    placement: Placement,
    free: int | None,
    graph_patches: int = GRAPH_PATCHES,
    sets: int = 1,
) -> int | None:
    """KV pages for which `free_bytes` suffice; None on the CPU."""
    if free is None:
        return None
    values = 2 * shape.layers * shape.kv_heads * shape.head_dim * page_tokens
    return kv_bytes(free, graph_patches, sets) // (values * placement.dtype.itemsize)


def loaded_bytes(decoder: nn.Module, places: LinearPlaces, tables: AdapterTables | None) -> int:
    """Bytes of the decoder, of the layers at `places` and of the adapters' tables; a tensor that
    several have counts once."""
    tensors = {
        id(tensor): tensor
        for module in (decoder, *(place.layer for place in places.values()))
        for tensor in (*module.parameters(), *module.buffers())
    }
    own = 0 if tables is None else tables.num_bytes
    return own + sum(tensor.nbytes for tensor in tensors.values())


# -- pictures --------------------------------------------------------------------------------------
def pixel_limits(settings: QwenVLSettings, pictures: PicturePreparation) -> PixelLimits:
    """The pixels that settings and checkpoint allow. Raises `InvalidSetting` for settings that
    contradict each other."""
    own = pictures.bounds
    most = settings.max_pixels or min(own.max_pixels, DEFAULT_MAX_PIXELS)
    usual = settings.default_max_pixels or most
    least = settings.min_pixels or min(own.min_pixels, usual)
    named = {"min_pixels": least, "default_max_pixels": usual, "max_pixels": most}
    for lower, higher in itertools.pairwise(named):
        if named[lower] > named[higher]:
            raise InvalidSetting(
                f"qwen_vl.{lower} {named[lower]} is above qwen_vl.{higher} {named[higher]}"
            )
    return PixelLimits(least, most, usual, (pictures.patch * pictures.merge) ** 2)


# -- films -----------------------------------------------------------------------------------------
def why_no_films(settings: QwenVLSettings, model: ChatModel) -> str:
    """Why a server of this model takes no films; empty if it does."""
    if settings.films == "off":
        return "films are off on this server (setting qwen_vl.films)"
    if model.films is None:
        return model.no_films
    if settings.films == "auto" and find_spec("av") is None:
        return f"this server has no decoder of films (its operator can install {EXTRA})"
    return ""


# -- widths --------------------------------------------------------------------------------------
def chunk_widths(largest: int) -> tuple[int, ...]:
    """Widths of passes over one prompt, ascending: the largest, its half and its quarter."""
    return tuple(sorted({max(1, largest // 4), max(1, largest // 2), largest}))


def packed_widths(largest: int) -> tuple[int, ...]:
    """Widths of packed passes, ascending from PACK_ALIGN to `largest` (rounded up to a multiple of
    it), as few as waste at most MOST_WASTE of a pass."""
    widths, last = [PACK_ALIGN], aligned(largest)
    while widths[-1] < last:
        least = widths[-1] + PACK_ALIGN  # rows of the smallest pass that the next width is for
        most = int(least / (1 - MOST_WASTE)) // PACK_ALIGN * PACK_ALIGN
        widths.append(min(last, max(least, most)))
    return tuple(widths)


def aligned(rows: int) -> int:
    return -(-rows // PACK_ALIGN) * PACK_ALIGN


def powers_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself: decode widths on the CPU where they may vary."""
    return tuple(sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)}))


def decode_widths(slots: int) -> tuple[int, ...]:
    """Decode widths on a GPU, one graph each: 1, 2, 4, 8, 16, 24, ... up to the multiple of eight
    that takes all `slots`, from 64 on in steps of 16, from 128 on of 32."""
    steps = (*range(8, 64, 8), *range(64, 128, 16), *range(128, slots + 32, 32))
    last = next((width for width in (1, 2, 4, *steps) if width >= slots), slots)
    return (*(width for width in (1, 2, 4, *steps) if width < last), last)


def fixed_width(slots: int) -> int:
    """The only decode width for `slots` sequences where it may not vary: from four on a multiple of
    four, because matmul kernels give the odd rows at the end other bits."""
    return slots if slots < 4 else -(-slots // 4) * 4


# -- controls --------------------------------------------------------------------------------------
def check_controls(controls: Controls, vocab: int, max_tokens: int) -> None:
    """Raise `InvalidRequest` for more than an engine has room for, and for tokens that a vocabulary
    of that size does not have."""
    biased = [token for token, _ in controls.logit_bias]
    stops = sorted(controls.stop_token_ids)
    for name, tokens, most in (
        ("logit_bias", biased, MOST_BIASED),
        ("stop_token_ids", stops, MOST_STOP_TOKENS),
    ):
        if len(tokens) > most:
            raise InvalidRequest(
                f"{name} has {len(tokens)} tokens; send at most {most}", param=name
            )
        unknown = [token for token in tokens if not 0 <= token < vocab]
        if unknown:
            problem = f"{name} has the token {unknown[0]}; the model's are 0 to {vocab - 1}"
            raise InvalidRequest(problem, param=name)
    if controls.min_tokens > max_tokens:
        problem = f"min_tokens {controls.min_tokens} is above the answer's {max_tokens} tokens"
        raise InvalidRequest(f"{problem}; lower it", param="min_tokens")
