"""What one checkpoint offers under the settings on one device. Knows every knob of the room; knows
no request, no weights and no wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from predictors.compute.kernels.fp8 import has_fp8_units
from predictors.diffusion.request import HIGH, LOSSLESS, TIERS, TURBO, Offer, Tiers
from predictors.errors import InvalidRequest
from predictors.models.flux.config import Facts
from predictors.settings import FluxSettings, InvalidSetting

CPU = torch.device("cpu")
NO_UNITS = "which this GPU does not multiply (compute capability 8.9 and later do)"


def make_offer(facts: Facts, settings: FluxSettings, device: torch.device = CPU) -> Offer:
    """What this checkpoint draws under these settings on `device`; raises `InvalidSetting` naming
    the knob."""
    width, height = default = _default_size(facts, settings)
    tokens = settings.max_sequence_length or facts.default_text_tokens
    if not 1 <= tokens <= facts.max_text_tokens:
        raise InvalidSetting(
            f"flux.max_sequence_length must be from 1 to {facts.max_text_tokens}, not {tokens}"
        )
    steps = settings.default_steps or facts.default_steps
    if not 1 <= steps <= settings.max_steps:
        raise InvalidSetting(f"flux.default_steps is {steps}, flux.max_steps {settings.max_steps}")
    offer = Offer(
        default_width=width,
        default_height=height,
        default_steps=steps,
        default_sequence_length=tokens,
        max_sequence_length=facts.max_text_tokens,
        side_multiple=facts.patch_pixels,
        min_side=settings.min_side,
        max_side=settings.max_side,
        max_pixels=settings.max_pixels,
        max_steps=settings.max_steps,
        sizes=tuple(dict.fromkeys(_sizes("flux.sizes", settings.sizes) or [default])),
        refuses_unpromised=settings.unpromised == "refuse",
        tiers=make_tiers(settings, device, is_quantized=facts.is_quantized),
    )
    _check_sizes(offer)
    return offer


def make_tiers(settings: FluxSettings, device: torch.device, *, is_quantized: bool) -> Tiers:
    """The tiers that a checkpoint, quantised or not, serves on `device`; raises `InvalidSetting`.

    `auto` takes fp8 only where there are units for it. On the CPU, where fp8 is the slow reference
    arithmetic, it has to be asked for.
    """
    has_units = has_fp8_units(device)
    if device.type == "cuda" and is_quantized and not has_units:
        raise InvalidSetting(f"the checkpoint is stored in fp8, {NO_UNITS}")
    if settings.tiers == "auto":
        fits = {LOSSLESS: not is_quantized, HIGH: is_quantized or has_units, TURBO: True}
        loaded = tuple(tier for tier in TIERS if fits[tier])
    else:
        loaded = _named_tiers(settings.tiers)
    if LOSSLESS in loaded and is_quantized:
        raise InvalidSetting("flux.tiers has lossless, but the checkpoint is stored in fp8")
    if HIGH in loaded and device.type == "cuda" and not has_units:
        raise InvalidSetting(f"flux.tiers has high, which takes fp8, {NO_UNITS}")
    default = settings.default_tier or loaded[0]
    if default not in loaded:
        raise InvalidSetting(
            f"flux.default_tier is {default!r}, but flux.tiers are {', '.join(loaded)}"
        )
    return Tiers(loaded, default, has_base=not is_quantized)


def _named_tiers(text: str) -> tuple[str, ...]:
    named = {part.strip() for part in text.split(",") if part.strip()}
    if not named or not named <= set(TIERS):
        raise InvalidSetting(
            f"flux.tiers must be auto, or of {', '.join(TIERS)}, comma-separated, not {text!r}"
        )
    return tuple(tier for tier in TIERS if tier in named)


def _default_size(facts: Facts, settings: FluxSettings) -> tuple[int, int]:
    native = (facts.sample_size, facts.sample_size)
    asked = _sizes("flux.default_size", settings.default_size)
    promised = _sizes("flux.sizes", settings.sizes)
    if asked:
        return asked[0]
    # a default that is always refused would be none
    is_lost = settings.unpromised == "refuse" and promised and native not in promised
    return promised[0] if is_lost else native


def _check_sizes(offer: Offer) -> None:
    for width, height in ((offer.default_width, offer.default_height), *offer.sizes):
        try:
            offer.check_sides(width, height)
        except InvalidRequest as error:
            message = f"size {width}x{height} can't be promised: {error.message}"
            raise InvalidSetting(message) from error
    default = (offer.default_width, offer.default_height)
    if offer.refuses_unpromised and default not in offer.sizes:
        raise InvalidSetting(f"flux.default_size {default} would be refused: not in flux.sizes")


def _sizes(knob: str, text: str) -> Sequence[tuple[int, int]]:
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InvalidSetting(f"{knob} must be WIDTHxHEIGHT, comma-separated, not {part!r}")
        sizes.append((int(width), int(height)))
    return sizes
