"""Loads the weights of a checkpoint folder in diffusers layout into our modules on a device.

Each tensor is read from safetensors straight into its place. `from_pretrained` is not used: it sets
process-wide torch defaults meanwhile, and two models may load at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from predictors.compute.checkpoint.quantised.source import PlainTensors, log_quantised
from predictors.compute.checkpoint.shards import Shards, Source
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import Fp8Linear
from predictors.diffusion.request import BASE
from predictors.diffusion.request import FP8 as NARROW
from predictors.errors import EngineFailed
from predictors.models.flux.config import FluxConfig
from predictors.models.flux.filling import fill_module
from predictors.models.flux.modules import encoder as encoding
from predictors.models.flux.modules.conditioning import Conditioning
from predictors.models.flux.modules.decoder import OLD_ATTENTION, Decoder, decoder_names
from predictors.models.flux.modules.narrow import narrow_modulation, narrow_t5
from predictors.models.flux.modules.text_encoders import ClipTextEncoder, T5TextEncoder
from predictors.models.flux.modules.transformer import Shape, Transformer, quantized
from predictors.models.flux.stored import check_part


class _Modules(NamedTuple):
    transformer: Transformer
    conditioning: Conditioning
    clip: ClipTextEncoder
    t5: T5TextEncoder
    decoder: Decoder
    encoder: encoding.Encoder | None


Sources = Callable[[Source], Callable[[str], tuple[str, ...]]]
"""From a component's tensors to a function that gives the stored names of a module's parameter."""
OpenComponent = Callable[[str], AbstractContextManager[Source]]
"""From a component's name (`transformer`, `vae`, ...) to its tensors."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a loaded checkpoint, on the device, in the placement's dtype."""

    transformers: Mapping[str, Transformer]
    """By form: `BASE`, `FP8`."""
    conditioning: Conditioning
    clip: ClipTextEncoder
    t5: T5TextEncoder
    decoder: Decoder
    encoder: encoding.Encoder | None = None


def load_parts(
    config: FluxConfig,
    placement: Placement,
    forms: Collection[str] = (BASE,),
    open_component: OpenComponent | None = None,
    *,
    fp8_conditioning: bool = False,
    encodes: bool = False,
) -> Parts:
    """All modules with their weights, the transformer in each of `forms`. Engine thread.

    `open_component` replaces the checkpoint's folder if given. `fp8_conditioning`: see `narrow`.
    `encodes`: the autoencoder's encoder is loaded, too.
    Weights held in fp8 alone are quantised as they are read: the device never holds them wide.
    Raises `EngineFailed` naming a tensor that is missing or does not fit.
    """
    opened = open_component or partial(_open, config)
    components, modules = _empty(config, encodes)
    if open_component is None:  # all of them before any is read: that takes minutes
        _check(config, components, placement, encodes)
    t5 = modules.t5
    narrowed = _narrowed(modules, config, forms, fp8_conditioning)
    for name, parts in components.items():
        with opened(name) as stored:
            for module, sources in parts:
                # T5's activations overflow float16
                wide = module is t5 and placement.dtype == torch.float16
                own = replace(placement, dtype=torch.float32) if wide else placement
                fill_module(module, stored, own, sources(stored), quantises=module in narrowed)
    for part in modules:
        if part is not None:
            part.eval().requires_grad_(False)
    transformers = _in_forms(modules.transformer, config, forms)
    return Parts(transformers, *modules[1:])


def _empty(
    config: FluxConfig, encodes: bool
) -> tuple[dict[str, list[tuple[nn.Module, Sources]]], _Modules]:
    """All modules without values, and for each component the modules that are filled from it."""
    with torch.device("meta"):
        modules = _Modules(
            Transformer(config.shape),
            Conditioning(config.shape),
            ClipTextEncoder(config.clip),
            T5TextEncoder(config.t5),
            Decoder(config.decoder),
            encoding.Encoder(config.encoder) if encodes and config.encoder else None,
        )
    names = transformer_names(config.shape)
    if config.is_quantized:
        narrow, names = _stored_quantized(modules.transformer, names)
        modules = modules._replace(transformer=narrow)
    context = conditioning_names(config.shape)

    def of_decoder(stored: Source) -> Callable[[str], tuple[str, ...]]:
        is_old = OLD_ATTENTION in stored
        return decoder_names(config.decoder, has_old_attention=is_old).__getitem__

    def of_encoder(stored: Source) -> Callable[[str], tuple[str, ...]]:
        assert config.encoder is not None
        is_old = encoding.OLD_ATTENTION in stored
        return encoding.encoder_names(config.encoder, has_old_attention=is_old).__getitem__

    def of_encoder_of_text(stored: Source) -> Callable[[str], tuple[str, ...]]:
        return partial(_stored_as, stored)

    return {
        "transformer": [
            (modules.transformer, lambda _: names.__getitem__),
            (modules.conditioning, lambda _: context.__getitem__),
        ],
        "text_encoder": [(modules.clip, of_encoder_of_text)],
        "text_encoder_2": [(modules.t5, of_encoder_of_text)],
        "vae": [
            (modules.decoder, of_decoder),
            *([] if modules.encoder is None else [(modules.encoder, of_encoder)]),
        ],
    }, modules


def _open(config: FluxConfig, component: str) -> Shards | PlainTensors:
    """The stored tensors of a part, dequantised unless the model has fp8 layers for them."""
    folder = config.folders[component]
    if component == "transformer" and config.is_quantized:
        return Shards(folder, config.variant)
    return PlainTensors(folder, component, config.variant)


def _check(
    config: FluxConfig, components: Iterable[str], placement: Placement, encodes: bool
) -> None:
    """`EngineFailed` unless tensors and places match one to one. Reads headers only."""
    for name in components:
        is_native = name == "transformer" and config.is_quantized
        folder, variant = config.folders[name], config.variant
        part = check_part(folder, name, variant, is_native=is_native, encodes=encodes)
        if not is_native:
            log_quantised(name, part.quantised, part.wanted, placement.dtype)


def _narrowed(
    modules: _Modules, config: FluxConfig, forms: Collection[str], fp8_conditioning: bool
) -> list[nn.Module]:
    """Gives empty modules fp8 linears, for weights stored in another type; returns these."""
    found: list[nn.Module] = []
    if BASE not in forms and not config.is_quantized:
        quantized(modules.transformer, keep=False)
        found.append(modules.transformer)
    if fp8_conditioning:
        narrow_modulation(modules.conditioning)
        narrow_t5(modules.t5)
        found += [modules.conditioning, modules.t5]
    return found


def _in_forms(
    transformer: Transformer, config: FluxConfig, forms: Collection[str]
) -> dict[str, Transformer]:
    if config.is_quantized and BASE in forms:
        raise EngineFailed("the checkpoint holds fp8 weights only: no tier can be lossless")
    if BASE not in forms:
        return {NARROW: transformer}
    held = {BASE: transformer}
    if NARROW in forms:
        held[NARROW] = quantized(transformer, keep=True)
    return held


def _stored_quantized(
    transformer: Transformer, names: dict[str, tuple[str, ...]]
) -> tuple[Transformer, dict[str, tuple[str, ...]]]:
    """The empty module with fp8 linears, and `names` with those of their scales."""
    empty = quantized(transformer, keep=False)
    for path, layer in empty.named_modules():
        if isinstance(layer, Fp8Linear):
            weights = names[f"{path}.weight"]
            names[f"{path}.weight_scale"] = tuple(f"{name}_scale" for name in weights)
    return empty, names


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
        names |= _linear(f"{ours}.out", f"{theirs}.proj_out")
        names[f"{ours}.query_norm.weight"] = (f"{theirs}.attn.norm_q.weight",)
        names[f"{ours}.key_norm.weight"] = (f"{theirs}.attn.norm_k.weight",)
    return names | _linear("ends.embed", "x_embedder") | _linear("ends.project", "proj_out")


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
    """As `transformer_names`. The modulation stacks all blocks' in the order of the forward."""
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
        names |= _linear(f"{ours}.first", f"time_text_embed.{theirs}.linear_1")
        names |= _linear(f"{ours}.second", f"time_text_embed.{theirs}.linear_2")
    return names


def _linear(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{p}": tuple(f"{name}.{p}" for name in theirs) for p in ("weight", "bias")}


def _stored_as(stored: Source, name: str) -> tuple[str]:
    """The stored name of a text encoder's parameter: with or without `text_model.`, and T5's input
    embedding by either of its two names."""
    bare = name.removeprefix("text_model.")
    tied = {
        "encoder.embed_tokens.weight": "shared.weight",
        "shared.weight": "encoder.embed_tokens.weight",
    }
    for candidate in (name, bare, f"text_model.{bare}", tied.get(name, name)):
        if candidate in stored:
            return (candidate,)
    return (name,)
