"""Checks that the parts of a FLUX.1 folder fit together, on configs whose defaults are filled in:
mappings of diffusers, transformers or `tensors.with_defaults`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.compute.checkpoint.folder import shown
from predictors.errors import EngineFailed

PICTURE_CHANNELS = 3


def check_fit(
    transformer: Mapping[str, Any],
    clip: Mapping[str, Any],
    t5: Mapping[str, Any],
    vae: Mapping[str, Any],
) -> None:
    """Raise `EngineFailed` for parts that don't fit together."""
    latent = 4 * vae["latent_channels"]
    pairs = {
        "in_channels": ("four latent_channels of vae", latent),
        "out_channels": ("four latent_channels of vae", latent),
        "joint_attention_dim": ("d_model of text_encoder_2", t5["d_model"]),
        "pooled_projection_dim": ("hidden_size of text_encoder", clip["hidden_size"]),
    }
    for name, (theirs, wanted) in pairs.items():
        found = transformer[name]
        if found is not None and found != wanted:
            raise EngineFailed(
                f"transformer/config.json: {name} is {found}, {theirs} {wanted}: these are parts "
                "of different models, or of another pipeline"
            )
    axes = transformer["axes_dims_rope"]
    if len(axes) != 3 or sum(axes) != transformer["attention_head_dim"]:
        raise EngineFailed(
            f"transformer/config.json: axes_dims_rope {shown(list(axes))} must be three numbers "
            f"that add up to attention_head_dim {transformer['attention_head_dim']}"
        )


def check_decoder(vae: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for an autoencoder whose decoder is of another kind."""
    expected = {
        "act_fn": "silu",
        "out_channels": PICTURE_CHANNELS,
        "up_block_types": ["UpDecoderBlock2D"] * len(vae["block_out_channels"]),
    }
    for name, value in expected.items():
        found = vae[name]
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise EngineFailed(f"the autoencoder's {name} is {found}; only {value} is known here")
