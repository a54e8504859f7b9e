"""Device memory of a picture model by the tiers that are loaded, without torch.

Weights are counted exactly. What a picture takes beside them is the difference to the peak that was
measured on a card (`benchmarks/results/flux.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from predictors.compute.checkpoint.summary import (
    BYTES,
    CONTEXT_BYTES,
    NO_FP8,
    CardFacts,
    ServingOption,
    assignments,
    size_text,
)
from predictors.diffusion.request import BASE, FP8, HIGH, LOSSLESS, TURBO
from predictors.diffusion.tiers import choose_tiers
from predictors.serving.turns import num_spare
from predictors.settings import FluxSettings

WORK_BYTES = int(3.3 * 2**30)
"""Latents, modulations, activations, graphs and the decoder's work for sizes of up to a megapixel:
the measured peak of all tiers, 42.7 GiB, less 39.4 GiB of weights."""
# size and features of a token that `WORK_BYTES` is for; it grows with both
WORK_PIXELS, WORK_WIDTH = 2**20, 3072
SLOT_BYTES = 72 * 2**20
"""Memory of a slot with a picture of a megapixel in 28 steps, at `WORK_WIDTH`: 2.1 MB of modulation
per step, 4 MB of text, 1 MB of latents. Guidance doubles it, and it grows with the steps."""
STORED_FP8 = "the folder holds the transformer's blocks in fp8 only"


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """Linears that may be held in eight bits: their weights, and a scale per output feature."""

    values: int = 0
    scales: int = 0

    def wide(self, size: int) -> int:
        return self.values * size

    def narrow(self) -> int:
        return self.values + 4 * self.scales


@dataclass(frozen=True, slots=True)
class PictureWeights:
    """Numbers of weights, by how the tiers hold them."""

    blocks: LinearWeights
    """The linears that fp8 tiers hold in eight bits."""
    conditioning: LinearWeights
    """The linears that `flux.conditioning_precision` holds in eight bits."""
    others: int
    """All other weights."""
    width: int
    """Features of a token in the transformer."""
    is_quantized: bool
    """The folder holds `blocks` in fp8 only."""
    rank_row: int = 0
    """Values of a rank row of adapters, over all linears that run in every step."""
    reference_pixels: int = 0
    """Pixels of the picture that FLUX.1-Kontext reads beside the one it draws."""


def picture_options(
    weights: PictureWeights, settings: FluxSettings, dtype: str, card: CardFacts
) -> tuple[ServingOption, ...]:
    """The sets of tiers that may be loaded, the least memory last; the set that the settings choose
    is marked. Each has to fit into the models' part of the card."""
    card = card.within(settings.memory_fraction)
    chosen = _chosen_forms(settings, weights, card)
    size = BYTES[dtype]
    pixels = max(WORK_PIXELS, _most_pixels(settings)) + weights.reference_pixels
    work = WORK_BYTES * pixels * weights.width // (WORK_PIXELS * WORK_WIDTH)
    found = []
    for forms, (tiers, is_narrow) in FORMS.items():
        has_base, has_fp8 = forms[:2]
        blocks = has_base * weights.blocks.wide(size) + has_fp8 * weights.blocks.narrow()
        narrow, wide = weights.conditioning.narrow(), weights.conditioning.wide(size)
        option = ServingOption(
            name=", ".join(tiers) + (", conditioning in fp8" if is_narrow else ""),
            settings=_settings_of(tiers, is_narrow),
            num_bytes={
                "transformer blocks": blocks,
                "text encoder and modulation": narrow if is_narrow else wide,
                "other weights": weights.others * size,
                **_adapter_tables(settings, weights, size),
                "work": work,
                "spare slots": num_spare(settings.slots) * SLOT_BYTES * weights.width // WORK_WIDTH,
                "CUDA context": CONTEXT_BYTES,
            },
            is_chosen=forms == chosen,
            refused=STORED_FP8 * (has_base and weights.is_quantized)
            or NO_FP8 * (has_fp8 and card.has_fp8 is False),
        )
        found.append(_judged(option, card))
    return _advised(tuple(found))


def _adapter_tables(settings: FluxSettings, weights: PictureWeights, size: int) -> dict[str, int]:
    """The tables of adapters; what they change outside of the step stays on the host."""
    if not settings.lora_max_active:
        return {}
    rows = 1 + settings.lora_max_active * settings.adapter_rank  # row 0 is zero
    return {"adapters": rows * weights.rank_row * size}


FORMS: Mapping[tuple[bool, bool, bool], tuple[tuple[str, ...], bool]] = {
    (True, True, False): ((LOSSLESS, HIGH, TURBO), False),
    (True, False, False): ((LOSSLESS, TURBO), False),
    (False, True, False): ((HIGH, TURBO), False),
    (False, True, True): ((HIGH, TURBO), True),
}
"""Base weights held, fp8 weights held, conditioning in fp8 -> tiers that this serves."""


def _settings_of(tiers: tuple[str, ...], is_narrow: bool) -> dict[str, str]:
    found = {"PREDICTORS_FLUX_TIERS": ",".join(tiers)}
    return found | {"PREDICTORS_FLUX_CONDITIONING_PRECISION": "fp8"} if is_narrow else found


def _chosen_forms(
    settings: FluxSettings, weights: PictureWeights, card: CardFacts
) -> tuple[bool, bool, bool]:
    """The key of `FORMS` that the settings choose on `card`. Raises `InvalidSetting` as a start."""
    tiers = choose_tiers(
        settings,
        is_quantized=weights.is_quantized,
        is_cuda=card.memory_bytes is not None,
        has_fp8=card.has_fp8 is not False,
    )
    forms = tiers.forms
    return BASE in forms, FP8 in forms, settings.conditioning_precision == "fp8"


def _judged(option: ServingOption, card: CardFacts) -> ServingOption:
    if card.memory_bytes is None or option.refused:
        return option
    return replace(option, fits=option.total_bytes <= card.memory_bytes)


def _advised(options: tuple[ServingOption, ...]) -> tuple[ServingOption, ...]:
    """Each that does not fit names the settings of the first one that does."""
    helping = next((option for option in options if option.fits), None)
    advice = (
        f"set {assignments(helping.settings)}: {size_text(helping.total_bytes)}"
        if helping
        else "no tier fits: take a larger card"
    )
    return tuple(
        replace(option, advice=advice) if option.fits is False else option for option in options
    )


def _most_pixels(settings: FluxSettings) -> int:
    """The largest promised size; sizes of another form are refused elsewhere."""
    found = [0]
    for part in f"{settings.sizes},{settings.default_size}".split(","):
        width, _, height = part.strip().partition("x")
        if width.isdecimal() and height.isdecimal():
            found.append(int(width) * int(height))
    return max(found)
