"""Checks that the parts of a FLUX.1 folder fit together, on configs whose defaults are filled in:
mappings of diffusers, transformers or `tensors.with_defaults`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.compute.checkpoint.folder import shown
from predictors.diffusion.request import FILL, KONTEXT, TEXT
from predictors.errors import EngineFailed

PICTURE_CHANNELS = 3
PIPELINES: Mapping[str, tuple[str, ...]] = {
    FILL: ("FluxFillPipeline",),
    KONTEXT: ("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
}
"""Kind -> diffusers' pipelines of such a checkpoint, as model_index.json names them."""


def check_fit(
    transformer: Mapping[str, Any],
    clip: Mapping[str, Any],
    t5: Mapping[str, Any],
    vae: Mapping[str, Any],
) -> None:
    """Raise `EngineFailed` for parts that don't fit together."""
    latent = 4 * vae["latent_channels"]
    of_kind = fill_channels(vae) if is_fill(transformer, vae) else latent
    pairs = {
        "in_channels": ("four latent_channels of vae", of_kind),
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


def fill_channels(vae: Mapping[str, Any]) -> int:
    """Features of a patch that FLUX.1-Fill reads: its latents, those of the picture without its
    masked part, and the mask of its pixels."""
    pixels_per_patch = 4 ** len(vae["block_out_channels"])
    return 8 * int(vae["latent_channels"]) + int(pixels_per_patch)


def is_fill(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> bool:
    """True for the transformer of FLUX.1-Fill, which writes less than it reads."""
    is_wide = transformer["in_channels"] == fill_channels(vae)
    return is_wide and transformer["out_channels"] is not None


def kind_of(
    index: Mapping[str, Any],
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    named: str = "auto",
) -> str:
    """`TEXT`, `FILL` or `KONTEXT`, by `index`, which is model_index.json, and the channels of the
    transformer. `named` is the setting `flux.kind`.

    Raises `EngineFailed` if they disagree.
    """
    pipeline = str(index.get("_class_name", ""))
    found = next((kind for kind, names in PIPELINES.items() if pipeline in names), TEXT)
    fills, reason = is_fill(transformer, vae), f"flux.kind is {named}"
    if named == "auto":
        named = FILL if fills and found == TEXT else found
        reason = f"model_index.json names a {shown(pipeline)}"
    if fills != (named == FILL):
        raise EngineFailed(
            f"{reason}, but transformer/config.json: in_channels is {transformer['in_channels']}; "
            f"FLUX.1-Fill has {fill_channels(vae)} here, other kinds {4 * vae['latent_channels']}"
        )
    return named


def check_decoder(vae: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for an autoencoder whose decoder is of another kind."""
    up = ["UpDecoderBlock2D"] * len(vae["block_out_channels"])
    _check_vae(vae, {"act_fn": "silu", "out_channels": PICTURE_CHANNELS, "up_block_types": up})


def check_encoder(vae: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for an autoencoder whose encoder is of another kind."""
    down = ["DownEncoderBlock2D"] * len(vae["block_out_channels"])
    _check_vae(vae, {"act_fn": "silu", "in_channels": PICTURE_CHANNELS, "down_block_types": down})


def _check_vae(vae: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        found = vae[name]
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise EngineFailed(f"the autoencoder's {name} is {found}; only {value} is known here")
