"""The table of cards and ways to serve of docs/your-own-models.md, computed as `check` does."""

from __future__ import annotations

from collections.abc import Iterator

from predictors.chat.memory import ChatWeights, chat_options
from predictors.chat.tensors import decoder_tensors
from predictors.compute.checkpoint.summary import CardFacts, ServingOption, num_values
from predictors.diffusion.memory import picture_options
from predictors.models.flux.summary import count_weights
from predictors.models.flux.tensors import with_defaults
from predictors.models.qwen2_5_vl import folder as qwen25
from predictors.settings import FluxSettings, QwenVLSettings
from tests.full_size import FLUX_DEV, QWEN_3B, QWEN_7B

CARDS = (16, 24, 40, 48, 80, 96, 141)  # GB of 10**9 bytes: the least that a card of that name has


def flux_options(
    card: CardFacts, settings: FluxSettings | None = None
) -> tuple[ServingOption, ...]:
    configs = {part: with_defaults(part, config) for part, config in FLUX_DEV.items()}
    return picture_options(count_weights(configs), settings or FluxSettings(), "bfloat16", card)


def qwen_options(card: CardFacts, raw: dict[str, object]) -> tuple[ServingOption, ...]:
    text = {**qwen25.TEXT_DEFAULTS, **raw}
    sizes = qwen25.decoder_sizes(raw, text)
    vision = qwen25.vision_tensors({**qwen25.VISION_DEFAULTS, **raw["vision_config"]})
    counted = [sum(map(num_values, each.values())) for each in (decoder_tensors(sizes), vision)]
    weights = ChatWeights(*counted, sizes, vision_hidden=1280, patch=14)
    return chat_options(weights, QwenVLSettings(), "bfloat16", card)


def table() -> Iterator[str]:
    """The lines in Markdown."""
    yield f"| | needs | {' | '.join(f'{card} GB' for card in CARDS)} |"
    yield "|---" * (len(CARDS) + 2) + "|"
    facts = [CardFacts(card * 10**9, has_fp8=True) for card in CARDS]
    yield from _rows("FLUX.1-dev", [flux_options(card) for card in facts])
    for name, raw in (("Qwen2.5-VL-3B", QWEN_3B), ("Qwen2.5-VL-7B", QWEN_7B)):
        yield from _rows(name, [qwen_options(card, raw) for card in facts])


def _rows(model: str, by_card: list[tuple[ServingOption, ...]]) -> Iterator[str]:
    for options in zip(*by_card, strict=True):
        needed = max(options[0].total_bytes, options[0].loading_bytes) / 2**30
        cells = " | ".join(map(_cell, options))
        yield f"| {model}: {options[0].name} | {needed:.1f} GiB | {cells} |"


def _cell(option: ServingOption) -> str:
    if not option.fits:
        return "set" if "KV_TOKENS" in option.advice else "-"
    tokens = option.detail.get("kv_tokens")
    return "fits" if tokens is None else f"{tokens / 1000:,.0f}k"
