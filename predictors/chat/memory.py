"""Device memory of a chat model: weights, KV pages and graphs, without torch.

Weights and pages are counted exactly, as `limits` plans them. The room for graphs is measured
(`MEASURED_GRAPH_BYTES`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from predictors.chat.tensors import DecoderSizes, block_linear_shapes
from predictors.compute.checkpoint.summary import (
    BYTES,
    CONTEXT_BYTES,
    NO_FP8,
    CardFacts,
    ServingOption,
    assignments,
    num_values,
)
from predictors.settings import QwenVLSettings

GPU_CONTEXT, GPU_SLOTS = 32768, 64
GPU_PAGE = 64  # a GPU's kernels read 64 keys at a time
KV_SHARE = 0.8  # of the memory that is free once the weights are loaded, without that of graphs
GRAPH_BYTES = 6 * 2**30  # left free for graphs where there is enough
GRAPH_PATCHES = 5632  # of the largest of them; larger ones are taken to need as much per patch
MOST_BUCKET = 2**14  # patches of a graph; for more, computing takes longer than launching
LEAST_KV_SHARE = 0.5  # where that leaves little
MEASURED_GRAPH_BYTES = 4_400_000_000  # the vision encoder's 48 sizes on an H200
MIXED_GRAPH_BYTES = 1_240_000_000  # passes over prompts and rows that decode, 3B on an H200
LEAST_PER_MIXED_BYTE = 8  # bytes that the weights leave, so that those graphs are worth their room
MEASURED_HIDDEN = 1280  # of the vision tower in which that was measured
LEAST_CONTEXT = 4096  # tokens: two pictures of a megapixel and some text


def graph_sets(settings: QwenVLSettings) -> int:
    """Sets of graphs: with adapters there is a second one. That it takes as much as the first is an
    upper bound, not measured: both share one pool of memory."""
    return 2 if settings.lora_max_active else 1


def has_room_for_mixed(free: int) -> bool:
    """True if `free` bytes, which the weights leave, have room for the graphs of mixed passes."""
    return free >= LEAST_PER_MIXED_BYTE * MIXED_GRAPH_BYTES


def kv_bytes(free: int, graph_patches: int = GRAPH_PATCHES, sets: int = 1) -> int:
    """Bytes for keys and values of `free` ones; the rest is for graphs and passes."""
    graphs = sets * GRAPH_BYTES * max(graph_patches, GRAPH_PATCHES) // GRAPH_PATCHES
    return int(max(free * LEAST_KV_SHARE, (free - graphs) * KV_SHARE))


@dataclass(frozen=True, slots=True)
class ChatWeights:
    """Numbers of weights. A tied head is the embedding, and counts once."""

    decoder: int
    vision: int
    sizes: DecoderSizes
    vision_hidden: int
    """Width of the vision tower, with which its graphs grow."""
    patch: int
    """Pixels along a patch of a picture."""
    adaptable: int = 0
    """Inputs and outputs of all linears that adapters may change."""


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Tokens of the KV cache: of one whole context, of all slots and one more context, the bytes of
    one, and the bytes that graphs take beside it."""

    context: int
    wanted: int
    page: int
    token_bytes: int
    graph_bytes: int
    graph_patches: int
    graph_sets: int
    is_set: bool
    """The settings name the size."""

    def tokens(self, free: int) -> int:
        """As `limits.plan_limits` has it for `free` bytes once the weights are loaded."""
        most = (
            self.wanted
            if self.is_set
            else max(0, kv_bytes(free, self.graph_patches, self.graph_sets)) // self.token_bytes
        )
        return min(self.wanted, most) // self.page * self.page

    def most_tokens(self, free: int) -> int:
        """The tokens that leave room for the graphs."""
        return max(0, free - self.graph_bytes) // self.token_bytes // self.page * self.page


def chat_options(
    weights: ChatWeights, settings: QwenVLSettings, dtype: str, card: CardFacts
) -> tuple[ServingOption, ...]:
    """The memory with the decoder in `dtype`, and with it in fp8, for the models' part of the
    card."""
    card = card.within(settings.memory_fraction)
    found = tuple(_option(narrow, weights, settings, dtype, card) for narrow in (False, True))
    if found[0].fits is False and not found[0].advice and found[1].fits:
        return replace(found[0], advice=f"set {assignments(found[1].settings)}"), found[1]
    return found


def _option(
    is_narrow: bool, weights: ChatWeights, settings: QwenVLSettings, dtype: str, card: CardFacts
) -> ServingOption:
    size = BYTES[dtype]
    wide = decoder = weights.decoder * size
    if is_narrow:
        linears = block_linear_shapes(weights.sizes)
        values, scales = sum(map(num_values, linears)), sum(shape[0] for shape in linears)
        decoder += values + 4 * scales - values * size
    vision = weights.vision * size
    adapters = _adapter_bytes(settings, weights, size)
    loaded = CONTEXT_BYTES + decoder + vision + sum(adapters.values())
    free = None if card.memory_bytes is None else card.memory_bytes - loaded
    has_mixed = settings.mixed_passes and settings.deterministic != "on" and not is_narrow
    has_mixed &= free is None or has_room_for_mixed(free)
    plan = _kv_plan(settings, weights, size, MIXED_GRAPH_BYTES * has_mixed)
    option = ServingOption(
        name="decoder in fp8" if is_narrow else f"decoder in {dtype}",
        settings={"PREDICTORS_QWEN_VL_PRECISION": "fp8" if is_narrow else "auto"},
        num_bytes={
            "language model": decoder,
            "vision tower": vision,
            "KV cache of one context": plan.token_bytes * min(plan.context, plan.wanted),
            "graphs": plan.graph_bytes,
            **adapters,
            "CUDA context": CONTEXT_BYTES,
        },
        loading_bytes=wide + vision + CONTEXT_BYTES,
        is_chosen=(settings.precision == "fp8") == is_narrow,
        refused=NO_FP8 * (is_narrow and card.has_fp8 is False),
        detail={"kv_bytes_per_token": plan.token_bytes, "max_context": plan.context},
    )
    return option if free is None or option.refused else _judged(option, plan, free, card)


def _adapter_bytes(settings: QwenVLSettings, weights: ChatWeights, size: int) -> dict[str, int]:
    """The adapters' tables, where there are any. Padding of the tower's MLP is not counted."""
    rank_rows = settings.lora_max_active * settings.adapter_rank
    return {"adapters": rank_rows * weights.adaptable * size} if rank_rows else {}


def _kv_plan(settings: QwenVLSettings, weights: ChatWeights, size: int, mixed_bytes: int) -> KvPlan:
    """`mixed_bytes` are those of graphs of passes over prompts and rows that decode."""
    context = min(settings.max_context or GPU_CONTEXT, weights.sizes.max_positions)
    largest = min(settings.max_pixels // weights.patch**2, MOST_BUCKET)
    patches = max(GRAPH_PATCHES, largest)
    graphs = MEASURED_GRAPH_BYTES * weights.vision_hidden // MEASURED_HIDDEN
    graphs *= graph_sets(settings)
    return KvPlan(
        context=context,
        wanted=settings.kv_tokens or ((settings.slots or GPU_SLOTS) + 1) * context,
        page=settings.page_tokens or GPU_PAGE,
        token_bytes=weights.sizes.kv_values * size,
        graph_bytes=graphs * patches // GRAPH_PATCHES + mixed_bytes,
        graph_patches=patches,
        graph_sets=graph_sets(settings),
        is_set=bool(settings.kv_tokens),
    )


def _judged(option: ServingOption, plan: KvPlan, free: int, card: CardFacts) -> ServingOption:
    """`option` with its tokens on `card`, of which `free` bytes are left by the weights."""
    assert card.memory_bytes is not None
    tokens, most = plan.tokens(free), plan.most_tokens(free)
    least = min(plan.context, plan.wanted)
    detail = {
        **option.detail,
        "kv_tokens": tokens,
        "kv_pages": tokens // plan.page,
        "whole_contexts": tokens // plan.context,
    }
    is_loadable = option.loading_bytes <= card.memory_bytes
    fits = is_loadable and least <= tokens <= most
    advice = ""
    if not fits and is_loadable and most >= least:
        advice = f"set PREDICTORS_QWEN_VL_KV_TOKENS={most}"
    elif not fits and is_loadable and most >= LEAST_CONTEXT:
        advice = f"set PREDICTORS_QWEN_VL_MAX_CONTEXT={most} PREDICTORS_QWEN_VL_KV_TOKENS={most}"
    return replace(option, fits=fits, advice=advice, detail=detail)
