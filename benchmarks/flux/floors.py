"""Floating-point operations of a FLUX picture, from the configs alone. A multiply and an add are
two operations. Only matmuls and attention are counted, as in the literature: 74.38e12 per step of
FLUX.1-dev at 1024x1024 (`docs/performance.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.ceilings import Operations
from predictors.models.flux.modules.transformer import Shape

MLP_RATIO = 4
PATCH = 2  # latents per side of a patch


def step(shape: Shape, num_text: int, num_image: int, rows: int = 1) -> Operations:
    """One forward pass of the transformer on `rows` pictures of so many tokens each."""
    dim, tokens = shape.dim, num_text + num_image
    blocks = shape.num_double + shape.num_single
    # QKV 3, out 1, MLP 8; a one-stream block has the same 12, in two matmuls
    linear = 2 * tokens * (4 + 2 * MLP_RATIO) * dim**2 * blocks
    attention = 4 * tokens**2 * dim * blocks
    ends = 2 * num_image * dim * (shape.in_channels + shape.out_channels)
    context = 2 * num_text * shape.text_dim * dim
    modulation = 2 * shape.modulation_dim * dim
    return Operations(rows * linear, rows * attention, rows * (ends + context + modulation))


def t5(config: Any, tokens: int) -> Operations:
    """T5's encoder: its four projections, gated MLP of three matmuls, attention."""
    inner = config.num_heads * config.d_kv
    weights = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff
    attention = 4 * tokens**2 * inner
    return Operations(0, config.num_layers * attention, config.num_layers * 2 * tokens * weights)


def clip(config: Any, tokens: int) -> Operations:
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    attention = 4 * tokens**2 * config.hidden_size
    layers = config.num_hidden_layers
    return Operations(0, layers * attention, layers * 2 * tokens * weights)


def vae(
    channels: Sequence[int], latent_channels: int, layers_per_block: int, height: int, width: int
) -> Operations:
    """The autoencoder's decoder for a picture of height x width pixels; channels as in its config,
    from the picture's end."""
    wide = channels[-1]
    area = (height >> (len(channels) - 1)) * (width >> (len(channels) - 1))
    work = _conv(latent_channels, wide, area) + 2 * _residual(wide, wide, area)
    work += 8 * area * wide**2  # query, key, value and out of the middle's attention
    attention = 4.0 * area**2 * wide
    before = wide
    for level, after in enumerate(reversed(channels)):
        work += _residual(before, after, area) + layers_per_block * _residual(after, after, area)
        if level < len(channels) - 1:
            area *= 4
            work += _conv(after, after, area)
        before = after
    return Operations(0, attention, work + _conv(before, 3, area))


def _conv(before: int, after: int, area: int) -> int:
    return 2 * 9 * before * after * area


def _residual(before: int, after: int, area: int) -> int:
    shortcut = 0 if before == after else 2 * before * after * area
    return _conv(before, after, area) + _conv(after, after, area) + shortcut
