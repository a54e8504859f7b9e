"""The tiers that are loaded, from the settings, the checkpoint and the device. Imports no torch, so
that a folder is refused by its settings before torch is imported.
"""

from __future__ import annotations

from predictors.diffusion.request import BASE, HIGH, LOSSLESS, TIERS, TURBO, Tiers
from predictors.settings import FluxSettings, InvalidSetting

NO_UNITS = "which this GPU does not multiply (compute capability 8.9 and later do)"


def choose_tiers(
    settings: FluxSettings, *, is_quantized: bool, is_cuda: bool, has_fp8: bool
) -> Tiers:
    """The tiers that a checkpoint, quantised or not, serves; raises `InvalidSetting`.

    `has_fp8`: the device multiplies fp8.

    `auto` takes fp8 only where there are units for it. On the CPU, where fp8 is the slow reference
    arithmetic, it has to be asked for.
    """
    if is_cuda and is_quantized and not has_fp8:
        raise InvalidSetting(f"the checkpoint is stored in fp8, {NO_UNITS}")
    if settings.tiers == "auto":
        fits = {LOSSLESS: not is_quantized, HIGH: is_quantized or has_fp8, TURBO: True}
        loaded = tuple(tier for tier in TIERS if fits[tier])
    else:
        loaded = _named_tiers(settings.tiers)
    if LOSSLESS in loaded and is_quantized:
        raise InvalidSetting("flux.tiers has lossless, but the checkpoint is stored in fp8")
    if HIGH in loaded and is_cuda and not has_fp8:
        raise InvalidSetting(f"flux.tiers has high, which takes fp8, {NO_UNITS}")
    default = settings.default_tier or loaded[0]
    if default not in loaded:
        raise InvalidSetting(
            f"flux.default_tier is {default!r}, but flux.tiers are {', '.join(loaded)}"
        )
    tiers = Tiers(loaded, default, has_base=not is_quantized)
    if settings.conditioning_precision == "fp8" and BASE in tiers.forms:
        raise InvalidSetting(
            "flux.conditioning_precision is fp8, which only tiers with fp8 weights may use; "
            f"flux.tiers are {', '.join(loaded)}, possible are high, or high,turbo"
        )
    return tiers


def _named_tiers(text: str) -> tuple[str, ...]:
    named = {part.strip() for part in text.split(",") if part.strip()}
    if not named or not named <= set(TIERS):
        raise InvalidSetting(
            f"flux.tiers must be auto, or of {', '.join(TIERS)}, comma-separated, not {text!r}"
        )
    return tuple(tier for tier in TIERS if tier in named)
