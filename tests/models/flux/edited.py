"""Tiny FLUX.1-Fill and -Kontext checkpoints, requests with pictures, and diffusers' pipelines on
given noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from predictors.diffusion.request import SourcePicture
from tests.variants import FLUX, config, variant, without

FILL_SIZES: dict[str, Any] = {
    "in_channels": 384,
    "out_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}


def make_fill(target: Path) -> Path:
    """The embedded checkpoint with a transformer of FLUX.1-Fill's channels, of random weights."""
    variant(
        FLUX,
        target,
        without("transformer"),
        config("model_index.json", _class_name="FluxFillPipeline"),
    )
    torch.manual_seed(0)
    FluxTransformer2DModel(**FILL_SIZES).save_pretrained(target / "transformer")
    return target


def make_kontext(target: Path) -> Path:
    """The embedded checkpoint as a FLUX.1-Kontext one: they have the same tensors."""
    return variant(FLUX, target, config("model_index.json", _class_name="FluxKontextPipeline"))


def picture(width: int = 64, height: int = 64, seed: int = 0) -> SourcePicture:
    """A smooth picture with a square in it."""
    across, down = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    rng = np.random.default_rng(seed)
    colours = [across * down, across * np.ones_like(down), 1 - down * np.ones_like(across)]
    pixels = (np.stack(colours, axis=-1) * 200 + 30).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return SourcePicture(pixels)


def masked(source: SourcePicture) -> SourcePicture:
    """`source` with a mask over its right half, whose borders are grey."""
    height, width = source.pixels.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[height // 8 :, width // 2 :] = 255
    mask[:, width // 2 - 4 : width // 2] = 127  # nearer to 0: kept
    mask[height // 8 - 3 : height // 8, width // 2 :] = 128
    return SourcePicture(source.pixels, mask)


@contextmanager
def given(pipeline: Any, noise: Tensor, samples: Sequence[Tensor]) -> Iterator[None]:
    """`pipeline` draws this `noise`, and these `samples` of the posterior one after the other."""
    left = iter(samples)
    vae = "diffusers.models.autoencoders.vae.randn_tensor"
    own = f"{type(pipeline).__module__}.randn_tensor"
    with (
        patch(vae, lambda *_, **__: next(left)),
        patch(own, lambda *_, **__: noise),
    ):
        yield
