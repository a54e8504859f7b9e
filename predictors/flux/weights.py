"""A checkpoint folder in diffusers layout to modules on the device. Knows file names and tensor
names; knows no traffic.

Configs and tokenizers are read through diffusers' and transformers' own classes, so that defaults
and old spellings are theirs. Weights are read straight from safetensors, one tensor at a time into
its place: `from_pretrained` sets process-wide torch defaults meanwhile, and two rooms load at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import (  # type: ignore[attr-defined]
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from predictors.compute.device import Placement
from predictors.compute.shards import Shards
from predictors.errors import EngineFailed
from predictors.flux.modules.conditioning import Conditioning
from predictors.flux.modules.transformer import Shape, Transformer

MAX_TEXT_TOKENS = 512  # what the model was trained on, whatever the tokenizer would allow
MAX_TEXT_TOKENS_SCHNELL = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint says about itself; read from configs, without weights."""

    folder: Path
    shape: Shape
    scheduler: Mapping[str, Any]
    """The whole config of its noise schedule, defaults filled in."""
    latent_channels: int
    patch_pixels: int
    """Pixels per side of one packed latent patch: 16 with FLUX's autoencoder."""
    sample_size: int
    """The autoencoder's native side in pixels."""
    latent_scale: float
    latent_shift: float
    max_text_tokens: int
    """Longest T5 sequence that may be asked for."""

    @property
    def default_text_tokens(self) -> int:
        """T5 tokens of a request that names none."""
        limit = MAX_TEXT_TOKENS if self.shape.has_guidance else MAX_TEXT_TOKENS_SCHNELL
        return min(self.max_text_tokens, limit)

    @property
    def default_steps(self) -> int:
        """Denoise steps of a request that names none: distilled checkpoints need four."""
        return 28 if self.shape.has_guidance else 4


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """The two tokenizers of a checkpoint. Not thread-safe: they keep padding state."""

    clip: Any
    t5: Any


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a checkpoint, on the device, in the placement's dtype."""

    transformer: Transformer
    conditioning: Conditioning
    clip: CLIPTextModel
    t5: T5EncoderModel
    vae: AutoencoderKL


def read_facts(folder: Path) -> tuple[Facts, Tokenizers]:
    """Configs and tokenizers only: cheap, any thread."""
    # instances fill in the defaults of absent fields; meta costs nothing
    with torch.device("meta"):
        transformer = _from_config(FluxTransformer2DModel, folder / "transformer").config
        vae = _from_config(AutoencoderKL, folder / "vae").config
    scheduler = _from_config(FlowMatchEulerDiscreteScheduler, folder / "scheduler").config
    tokenizers = Tokenizers(
        clip=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        t5=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
    )
    facts = Facts(
        folder=folder,
        shape=_shape(transformer),
        scheduler=dict(scheduler),
        latent_channels=transformer.in_channels // 4,
        patch_pixels=2 * 2 ** (len(vae.block_out_channels) - 1),
        sample_size=vae.sample_size,
        latent_scale=vae.scaling_factor,
        latent_shift=vae.shift_factor or 0.0,
        max_text_tokens=min(tokenizers.t5.model_max_length, MAX_TEXT_TOKENS),
    )
    return facts, tokenizers


def _from_config(kind: Any, folder: Path) -> Any:
    return kind.from_config(kind.load_config(folder, local_files_only=True))


def _shape(config: Any) -> Shape:
    return Shape(
        num_double=config.num_layers,
        num_single=config.num_single_layers,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels or config.in_channels,
        text_dim=config.joint_attention_dim,
        pooled_dim=config.pooled_projection_dim,
        has_guidance=config.guidance_embeds,
        rotary_axes=tuple(config.axes_dims_rope),
    )


def load_parts(facts: Facts, placement: Placement) -> Parts:
    """All modules with their weights. Engine thread; raises `EngineFailed` naming what is amiss."""
    with torch.device("meta"):
        transformer = Transformer(facts.shape)
        conditioning = Conditioning(facts.shape)
        clip = CLIPTextModel(CLIPTextConfig.from_pretrained(facts.folder / "text_encoder"))
        t5 = T5EncoderModel(T5Config.from_pretrained(facts.folder / "text_encoder_2"))
        vae = _from_config(AutoencoderKL, facts.folder / "vae")
    vae.encoder = vae.quant_conv = None  # pictures are only ever decoded
    with Shards(facts.folder / "transformer") as shards:
        _fill(transformer, shards, placement, transformer_names(facts.shape).__getitem__)
        _fill(conditioning, shards, placement, conditioning_names(facts.shape).__getitem__)
    for module, name in ((clip, "text_encoder"), (t5, "text_encoder_2"), (vae, "vae")):
        # T5's activations overflow float16
        wide = module is t5 and placement.dtype == torch.float16
        with Shards(facts.folder / name) as shards:
            own = replace(placement, dtype=torch.float32) if wide else placement
            _fill(module, shards, own, partial(_stored_as, shards))
    modules = (transformer, conditioning, clip, t5, vae)
    for module in modules:
        _derive_buffers(module, placement)
        module.eval().requires_grad_(False)
    return Parts(*modules)


def transformer_names(shape: Shape) -> dict[str, tuple[str, ...]]:
    """Our parameter names to diffusers' (several are stacked along the output features)."""
    names: dict[str, tuple[str, ...]] = {}
    for i in range(shape.num_double):
        ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        names |= _stream(f"{ours}.image", theirs, "to_{}", "norm_", "to_out.0", "ff")
        names |= _stream(
            f"{ours}.text", theirs, "add_{}_proj", "norm_added_", "to_add_out", "ff_context"
        )
    for i in range(shape.num_single):
        ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        names |= _linear(f"{ours}.qkv", *(f"{theirs}.attn.to_{x}" for x in "qkv"))
        names |= _linear(f"{ours}.up", f"{theirs}.proj_mlp")
        names |= _linear(f"{ours}.leave", f"{theirs}.proj_out")
        names[f"{ours}.query_norm.weight"] = (f"{theirs}.attn.norm_q.weight",)
        names[f"{ours}.key_norm.weight"] = (f"{theirs}.attn.norm_k.weight",)
    return names | _linear("ends.enter", "x_embedder") | _linear("ends.leave", "proj_out")


def _stream(
    ours: str, block: str, qkv: str, norm: str, out: str, ff: str
) -> dict[str, tuple[str, ...]]:
    attn = f"{block}.attn"
    return (
        _linear(f"{ours}.qkv", *(f"{attn}.{qkv.format(x)}" for x in "qkv"))
        | _linear(f"{ours}.out", f"{attn}.{out}")
        | _linear(f"{ours}.up", f"{block}.{ff}.net.0.proj")
        | _linear(f"{ours}.down", f"{block}.{ff}.net.2")
        | {f"{ours}.query_norm.weight": (f"{attn}.{norm}q.weight",)}
        | {f"{ours}.key_norm.weight": (f"{attn}.{norm}k.weight",)}
    )


def conditioning_names(shape: Shape) -> dict[str, tuple[str, ...]]:
    """As `transformer_names`; the modulation stacks every block's in the order of the forward."""
    norms = [
        f"transformer_blocks.{i}.{norm}.linear"
        for i in range(shape.num_double)
        for norm in ("norm1", "norm1_context")
    ]
    norms += [f"single_transformer_blocks.{i}.norm.linear" for i in range(shape.num_single)]
    names = _linear("modulation", *norms, "norm_out.linear") | _linear(
        "context", "context_embedder"
    )
    embedders = {
        "time": "timestep_embedder",
        "guidance": "guidance_embedder",
        "pooled": "text_embedder",
    }
    for ours, theirs in embedders.items():
        names |= _linear(f"{ours}.enter", f"time_text_embed.{theirs}.linear_1")
        names |= _linear(f"{ours}.leave", f"time_text_embed.{theirs}.linear_2")
    return names


def _linear(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{p}": tuple(f"{name}.{p}" for name in theirs) for p in ("weight", "bias")}


def _stored_as(shards: Shards, name: str) -> tuple[str]:
    """The stored name of a library module's parameter: with or without `text_model.`, and T5's
    input embedding under either of its two names."""
    bare = name.removeprefix("text_model.")
    tied = {
        "encoder.embed_tokens.weight": "shared.weight",
        "shared.weight": "encoder.embed_tokens.weight",
    }
    for candidate in (name, bare, f"text_model.{bare}", tied.get(name, name)):
        if candidate in shards:
            return (candidate,)
    return (name,)


def _fill(
    module: nn.Module,
    shards: Shards,
    placement: Placement,
    sources: Callable[[str], tuple[str, ...]],
) -> None:
    """Give every meta parameter of `module` its weights: `sources(name)` stacked along dim 0."""
    places: dict[int, Tensor] = {}  # tied parameters are one object and stay one
    state = {}
    for name, meta in module.named_parameters(remove_duplicate=False):
        if id(meta) not in places:
            places[id(meta)] = _read(name, meta, shards, placement, sources(name))
        state[name] = places[id(meta)]
    module.load_state_dict(state, strict=True, assign=True)


def _derive_buffers(module: nn.Module, placement: Placement) -> None:
    """CLIP's position ids are derived, not stored; no other module here has a buffer."""
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise EngineFailed(f"no way is known to derive the buffer {name}")
        positions = torch.arange(buffer.shape[-1], device=placement.device)[None]
        module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)


def _read(
    name: str, meta: Tensor, shards: Shards, placement: Placement, sources: tuple[str, ...]
) -> Tensor:
    place = torch.empty(meta.shape, dtype=placement.dtype, device=placement.device)
    row = 0
    for source in sources:
        tensor = shards.read(source)
        rows = tensor.shape[0]
        target = place[row : row + rows]
        if tensor.shape != target.shape:
            raise EngineFailed(
                f"tensor {source} has shape {list(tensor.shape)}; the config asks for "
                f"{list(target.shape)}"
            )
        target.copy_(tensor)
        row += rows
    if row != meta.shape[0]:
        raise EngineFailed(f"{name} takes {meta.shape[0]} rows; the checkpoint has {row}")
    return place
