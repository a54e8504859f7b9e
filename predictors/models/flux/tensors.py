"""The tensors that a FLUX.1 checkpoint stores, by name and shape, computed from its configs without
torch, diffusers or transformers.

Absent values of a config are filled in as those libraries do; tests compare the defaults and the
tensors with the libraries' own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from predictors.compute.checkpoint.headers import Header

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "patch_size": 1,
        "in_channels": 64,
        "out_channels": None,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
        "axes_dims_rope": (16, 56, 56),
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (64,),
        "layers_per_block": 1,
        "act_fn": "silu",
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text_encoder_2": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
    },
}
"""diffusers' and transformers' defaults of the values that decide about tensors, of the text
encoders' other numbers, and of the autoencoder's that latents are scaled by."""
MLP_RATIO = 4
TIME_FEATURES = 256  # of a timestep, before it is embedded
NOTHING = r"(?!)"  # no name matches
UNUSED: Mapping[str, str] = {
    "transformer": NOTHING,
    "text_encoder": r"(^|\.)position_ids$|^logit_scale$|^(vision_model|\w+_projection)\.",
    "text_encoder_2": r"^(decoder|lm_head)\.",
    "vae": r"^(encoder|quant_conv)\.",
}
"""Patterns of stored names that are not needed, by component: derived buffers, CLIP's vision half
and projections (the pipeline takes the states before them), T5's decoder, and the autoencoder's
encoder unless pictures are taken."""
OLD_ATTENTION = "mid_block.attentions.0.proj_attn.weight"
"""A name of the autoencoder's attention before diffusers 0.18, after `decoder.` or `encoder.`; the
others were renamed with it."""

Shapes = dict[str, tuple[int, ...]]
"""Stored name -> shape."""


def with_defaults(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a part with all values of `DEFAULTS`. CLIP's may be inside a whole CLIP's."""
    inner = config.get("text_config")
    if config.get("model_type") == "clip" and isinstance(inner, Mapping):
        config = inner
    return {**DEFAULTS[part], **config}


def tensors_of(
    part: str,
    config: Mapping[str, Any],
    stored: Mapping[str, Header],
    *,
    encodes: bool = False,
) -> Shapes:
    """The tensors of a component, the autoencoder's encoder only with `encodes`. `config` has its
    defaults filled in; `stored` are the files', since some tensors have two spellings or shapes."""
    match part:
        case "transformer":
            return transformer_tensors(config)
        case "text_encoder":
            return _as_stored(clip_tensors(config), stored)
        case "text_encoder_2":
            return _as_stored(t5_tensors(config), stored)
    found = decoder_tensors(config, has_old_attention=f"decoder.{OLD_ATTENTION}" in stored)
    if encodes:
        is_old = f"encoder.{OLD_ATTENTION}" in stored
        found |= encoder_tensors(config, has_old_attention=is_old)
    for name, shape in found.items():  # linears that are stored as convolutions of one pixel
        if len(shape) == 2 and name in stored and stored[name].shape == (*shape, 1, 1):
            found[name] = (*shape, 1, 1)
    return found


# -- transformer -----------------------------------------------------------------------------------
def transformer_tensors(config: Mapping[str, Any]) -> Shapes:
    """All of the transformer: its blocks, and what is computed once per picture."""
    head = config["attention_head_dim"]
    dim = head * config["num_attention_heads"]
    channels = config["in_channels"]
    found = _linear("x_embedder", dim, channels)
    found |= _linear("context_embedder", dim, config["joint_attention_dim"])
    embedders = {"timestep": TIME_FEATURES, "text": config["pooled_projection_dim"]}
    if config["guidance_embeds"]:
        embedders["guidance"] = TIME_FEATURES
    for name, features in embedders.items():
        found |= _linear(f"time_text_embed.{name}_embedder.linear_1", dim, features)
        found |= _linear(f"time_text_embed.{name}_embedder.linear_2", dim, dim)
    for i in range(config["num_layers"]):
        found |= _double_block(f"transformer_blocks.{i}", dim, head)
    for i in range(config["num_single_layers"]):
        found |= _single_block(f"single_transformer_blocks.{i}", dim, head)
    found |= _linear("norm_out.linear", 2 * dim, dim)
    return found | _linear("proj_out", config["out_channels"] or channels, dim)


def block_linears(config: Mapping[str, Any]) -> Shapes:
    """The weights that fp8 tiers hold in eight bits: the linears of the blocks, without norms,
    modulations and biases."""
    return {
        name: shape
        for name, shape in transformer_tensors(config).items()
        if "transformer_blocks." in name
        and ".norm" not in name
        and name.endswith(".weight")
        and len(shape) == 2
    }


def _double_block(block: str, dim: int, head: int) -> Shapes:
    found: Shapes = {}
    for norm in ("norm1", "norm1_context"):
        found |= _linear(f"{block}.{norm}.linear", 6 * dim, dim)
    attention = ("to_{}", "add_{}_proj")
    for x in "qkv":
        for name in attention:
            found |= _linear(f"{block}.attn.{name.format(x)}", dim, dim)
    for out in ("to_out.0", "to_add_out"):
        found |= _linear(f"{block}.attn.{out}", dim, dim)
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        found[f"{block}.attn.{norm}.weight"] = (head,)
    for mlp in ("ff", "ff_context"):
        found |= _linear(f"{block}.{mlp}.net.0.proj", MLP_RATIO * dim, dim)
        found |= _linear(f"{block}.{mlp}.net.2", dim, MLP_RATIO * dim)
    return found


def _single_block(block: str, dim: int, head: int) -> Shapes:
    found = _linear(f"{block}.norm.linear", 3 * dim, dim)
    for x in "qkv":
        found |= _linear(f"{block}.attn.to_{x}", dim, dim)
    for norm in ("norm_q", "norm_k"):
        found[f"{block}.attn.{norm}.weight"] = (head,)
    found |= _linear(f"{block}.proj_mlp", MLP_RATIO * dim, dim)
    return found | _linear(f"{block}.proj_out", dim, (1 + MLP_RATIO) * dim)


# -- text encoders ---------------------------------------------------------------------------------
def clip_tensors(config: Mapping[str, Any]) -> Shapes:
    """All of CLIP's text half, with transformers' names of release 5."""
    dim, mlp = config["hidden_size"], config["intermediate_size"]
    found: Shapes = {
        "embeddings.token_embedding.weight": (config["vocab_size"], dim),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], dim),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{layer}.self_attn.{name}", dim, dim)
        found |= _linear(f"{layer}.mlp.fc1", mlp, dim) | _linear(f"{layer}.mlp.fc2", dim, mlp)
        found |= _norm(f"{layer}.layer_norm1", dim) | _norm(f"{layer}.layer_norm2", dim)
    return found | _norm("final_layer_norm", dim)


def t5_tensors(config: Mapping[str, Any]) -> Shapes:
    """All of T5's encoder; its embedding is `shared.weight`."""
    dim, mlp = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    is_gated = str(config["feed_forward_proj"]).startswith("gated-")
    found: Shapes = {"shared.weight": (config["vocab_size"], dim)}
    for i in range(config["num_layers"]):
        attention, dense = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        for x in "qkv":
            found[f"{attention}.SelfAttention.{x}.weight"] = (inner, dim)
        found[f"{attention}.SelfAttention.o.weight"] = (dim, inner)
        for name in ("wi_0", "wi_1") if is_gated else ("wi",):
            found[f"{dense}.DenseReluDense.{name}.weight"] = (mlp, dim)
        found[f"{dense}.DenseReluDense.wo.weight"] = (dim, mlp)
        found |= {f"{layer}.layer_norm.weight": (dim,) for layer in (attention, dense)}
    found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (
        config["relative_attention_num_buckets"],
        config["num_heads"],
    )
    return found | {"encoder.final_layer_norm.weight": (dim,)}


def _as_stored(tensors: Shapes, stored: Collection[str]) -> Shapes:
    """`tensors` by the spellings that the files have: with or without `text_model.`, and T5's
    embedding by either of its names or both."""
    tied = {"shared.weight": "encoder.embed_tokens.weight"}
    found: Shapes = {}
    for name, shape in tensors.items():
        spellings = (name, f"text_model.{name}", tied.get(name, name))
        held = [each for each in dict.fromkeys(spellings) if each in stored]
        found |= dict.fromkeys(held or [name], shape)
    return found


# -- autoencoder -----------------------------------------------------------------------------------
def decoder_tensors(config: Mapping[str, Any], *, has_old_attention: bool = False) -> Shapes:
    """The autoencoder's decoder."""
    latent = config["latent_channels"]
    widths = list(reversed(config["block_out_channels"]))
    found = _conv("post_quant_conv", latent, latent, 1) if config["use_post_quant_conv"] else {}
    found |= _conv("decoder.conv_in", widths[0], latent)
    has_attention = config["mid_block_add_attention"]
    found |= _middle("decoder.mid_block", widths[0], has_attention, has_old_attention)
    before = widths[0]
    for i, width in enumerate(widths):
        block = f"decoder.up_blocks.{i}"
        for j in range(config["layers_per_block"] + 1):
            found |= _resnet(f"{block}.resnets.{j}", before, width)
            before = width
        if i < len(widths) - 1:
            found |= _conv(f"{block}.upsamplers.0.conv", width, width)
    found |= _norm("decoder.conv_norm_out", before)
    return found | _conv("decoder.conv_out", config["out_channels"], before)


def encoder_tensors(config: Mapping[str, Any], *, has_old_attention: bool = False) -> Shapes:
    """The autoencoder's encoder."""
    widths, moments = config["block_out_channels"], 2 * config["latent_channels"]
    found = _conv("encoder.conv_in", widths[0], config["in_channels"])
    before = widths[0]
    for i, width in enumerate(widths):
        block = f"encoder.down_blocks.{i}"
        for j in range(config["layers_per_block"]):
            found |= _resnet(f"{block}.resnets.{j}", before, width)
            before = width
        if i < len(widths) - 1:
            found |= _conv(f"{block}.downsamplers.0.conv", width, width)
    has_attention = config["mid_block_add_attention"]
    found |= _middle("encoder.mid_block", before, has_attention, has_old_attention)
    found |= _norm("encoder.conv_norm_out", before) | _conv("encoder.conv_out", moments, before)
    return found | (_conv("quant_conv", moments, moments, 1) if config["use_quant_conv"] else {})


def _middle(name: str, channels: int, has_attention: bool, is_old: bool) -> Shapes:
    found: Shapes = {}
    for i in range(2):
        found |= _resnet(f"{name}.resnets.{i}", channels, channels)
    if has_attention:
        attention = f"{name}.attentions.0"
        new, old = ("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")
        found |= _norm(f"{attention}.group_norm", channels)
        for each in old if is_old else new:
            found |= _linear(f"{attention}.{each}", channels, channels)
    return found


def _resnet(name: str, channels_in: int, channels: int) -> Shapes:
    found = _norm(f"{name}.norm1", channels_in) | _conv(f"{name}.conv1", channels, channels_in)
    found |= _norm(f"{name}.norm2", channels) | _conv(f"{name}.conv2", channels, channels)
    if channels_in != channels:
        found |= _conv(f"{name}.conv_shortcut", channels, channels_in, 1)
    return found


def _conv(name: str, channels: int, channels_in: int, side: int = 3) -> Shapes:
    return {
        f"{name}.weight": (channels, channels_in, side, side),
        f"{name}.bias": (channels,),
    }


def _linear(name: str, features: int, features_in: int) -> Shapes:
    return {f"{name}.weight": (features, features_in), f"{name}.bias": (features,)}


def _norm(name: str, features: int) -> Shapes:
    return {f"{name}.weight": (features,), f"{name}.bias": (features,)}
