"""Prepares a caller's picture on the host for the three kinds of FLUX.1's checkpoints.

Text to image starts from the picture with noise on it, and keeps the part outside of a mask.
FLUX.1-Fill reads the picture without its masked part, and the mask, as features of each patch.
FLUX.1-Kontext reads the picture's patches as tokens. All as diffusers' pipelines do it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from predictors.diffusion.request import FILL, KONTEXT, SourcePicture
from predictors.diffusion.sampling import pack_patches
from predictors.diffusion.sources import Encoding, SourceInputs
from predictors.models.flux.config import FluxConfig

HALF = 128
"""The least level of a mask that counts as drawn again."""
POSTERIOR_SEED = 0x2545F491
"""Turns a request's seed into that of the posterior's sample, so that the noise of the latents is
the one of text to image."""


def read_source(
    config: FluxConfig, source: SourcePicture, seed: int, strength: float
) -> SourceInputs:
    """The inputs of an edit whose `source` has sides in whole patches."""
    pixels = torch.tensor(source.pixels)
    height, width = pixels.shape[:2]
    side = config.patch_pixels // 2
    shape = (1, config.latent_channels, height // side, width // side)
    everything = torch.ones(height, width, dtype=torch.uint8)
    if config.kind == KONTEXT:  # the pipeline takes the posterior's mean
        return SourceInputs(source, reference=Encoding(pixels, everything, torch.zeros(shape)))
    mask = None if source.mask is None else torch.tensor(source.mask) >= HALF
    generator = torch.Generator("cpu").manual_seed(seed ^ POSTERIOR_SEED)
    whole, masked = (torch.randn(shape, generator=generator) for _ in range(2))
    starts = strength < 1 or (mask is not None and config.kind != FILL)
    start = Encoding(pixels, everything, whole) if starts else None
    if config.kind != FILL:
        latent_mask = None if mask is None else _of_latents(mask, side, config.latent_channels)
        return SourceInputs(source, start, latent_mask)
    assert mask is not None
    beside = Encoding(pixels, (~mask).to(torch.uint8), masked)
    return SourceInputs(source, start, beside=beside, features=_of_pixels(mask, side))


def _of_latents(mask: Tensor, side: int, channels: int) -> Tensor:
    """(I, 4 * channels): the mask at the first pixel of each latent, which is where the pipeline's
    interpolation reads it."""
    small = mask[::side, ::side].float()
    return pack_patches(small.expand(1, channels, -1, -1).contiguous())[0]


def _of_pixels(mask: Tensor, side: int) -> Tensor:
    """(I, 4 * side * side): the mask at every pixel of a patch."""
    height, width = mask.shape
    cells = mask.float().view(height // side, side, width // side, side).permute(1, 3, 0, 2)
    return pack_patches(cells.reshape(1, side * side, height // side, width // side))[0]
