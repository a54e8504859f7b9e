"""Loads the weights of a checkpoint folder in diffusers layout into our modules on a device.

Each tensor is read from safetensors straight into its place. `from_pretrained` is not used: it sets
process-wide torch defaults meanwhile, and two models may load at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from predictors.compute.checkpoint.folder import reading
from predictors.compute.checkpoint.quantised.source import PlainTensors, log_quantised
from predictors.compute.checkpoint.shards import Shards, Source
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import E4M3, Fp8Linear, RowScaled
from predictors.diffusion.request import BASE
from predictors.diffusion.request import FP8 as NARROW
from predictors.errors import EngineFailed
from predictors.models.flux.config import FluxConfig
from predictors.models.flux.modules.conditioning import Conditioning
from predictors.models.flux.modules.decoder import OLD_ATTENTION, Decoder, decoder_names
from predictors.models.flux.modules.narrow import fill_narrow, narrow_modulation, narrow_t5
from predictors.models.flux.modules.transformer import Shape, Transformer, quantized
from predictors.models.flux.stored import check_part


class _Modules(NamedTuple):
    transformer: Transformer
    conditioning: Conditioning
    clip: CLIPTextModel
    t5: T5EncoderModel
    decoder: Decoder


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
    clip: CLIPTextModel
    t5: T5EncoderModel
    decoder: Decoder


def load_parts(
    config: FluxConfig,
    placement: Placement,
    forms: Collection[str] = (BASE,),
    open_component: OpenComponent | None = None,
    *,
    fp8_conditioning: bool = False,
) -> Parts:
    """All modules with their weights, the transformer in each of `forms`. Engine thread.

    `open_component` replaces the checkpoint's folder if given. `fp8_conditioning`: see `narrow`.
    Weights held in fp8 alone are quantised as they are read: the device never holds them wide.
    Raises `EngineFailed` naming a tensor that is missing or does not fit.
    """
    opened = open_component or partial(_open, config)
    components, modules = _empty(config)
    if open_component is None:  # all of them before any is read: that takes minutes
        _check(config, components, placement)
    t5 = modules.t5
    narrowed = _narrowed(modules, config, forms, fp8_conditioning)
    for name, parts in components.items():
        with opened(name) as stored:
            for module, sources in parts:
                # T5's activations overflow float16
                wide = module is t5 and placement.dtype == torch.float16
                own = replace(placement, dtype=torch.float32) if wide else placement
                _fill(module, stored, own, sources(stored), quantises=module in narrowed)
    for part in modules:
        _derive_buffers(part, placement)
        part.eval().requires_grad_(False)
    transformers = _in_forms(modules.transformer, config, forms)
    return Parts(transformers, modules.conditioning, modules.clip, modules.t5, modules.decoder)


def _empty(config: FluxConfig) -> tuple[dict[str, list[tuple[nn.Module, Sources]]], _Modules]:
    """All modules without values, and for each component the modules that are filled from it."""
    with torch.device("meta"), reading("the configs of the text encoders"):
        modules = _Modules(
            Transformer(config.shape),
            Conditioning(config.shape),
            CLIPTextModel(CLIPTextConfig.from_pretrained(config.folders["text_encoder"])),
            T5EncoderModel(T5Config.from_pretrained(config.folders["text_encoder_2"])),
            Decoder(config.decoder),
        )
    names = transformer_names(config.shape)
    if config.is_quantized:
        narrow, names = _stored_quantized(modules.transformer, names)
        modules = modules._replace(transformer=narrow)
    context = conditioning_names(config.shape)

    def of_decoder(stored: Source) -> Callable[[str], tuple[str, ...]]:
        is_old = OLD_ATTENTION in stored
        return decoder_names(config.decoder, has_old_attention=is_old).__getitem__

    def of_library(stored: Source) -> Callable[[str], tuple[str, ...]]:
        return partial(_stored_as, stored)

    return {
        "transformer": [
            (modules.transformer, lambda _: names.__getitem__),
            (modules.conditioning, lambda _: context.__getitem__),
        ],
        "text_encoder": [(modules.clip, of_library)],
        "text_encoder_2": [(modules.t5, of_library)],
        "vae": [(modules.decoder, of_decoder)],
    }, modules


def _open(config: FluxConfig, component: str) -> Shards | PlainTensors:
    """The stored tensors of a part, dequantised unless the model has fp8 layers for them."""
    folder = config.folders[component]
    if component == "transformer" and config.is_quantized:
        return Shards(folder, config.variant)
    return PlainTensors(folder, component, config.variant)


def _check(config: FluxConfig, components: Iterable[str], placement: Placement) -> None:
    """`EngineFailed` unless tensors and places match one to one. Reads headers only."""
    for name in components:
        is_native = name == "transformer" and config.is_quantized
        part = check_part(config.folders[name], name, config.variant, is_native=is_native)
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
    """The stored name of a library module's parameter: with or without `text_model.`, and T5's
    input embedding by either of its two names."""
    bare = name.removeprefix("text_model.")
    tied = {
        "encoder.embed_tokens.weight": "shared.weight",
        "shared.weight": "encoder.embed_tokens.weight",
    }
    for candidate in (name, bare, f"text_model.{bare}", tied.get(name, name)):
        if candidate in stored:
            return (candidate,)
    return (name,)


def _fill(
    module: nn.Module,
    stored: Source,
    placement: Placement,
    sources: Callable[[str], tuple[str, ...]],
    *,
    quantises: bool = False,
) -> None:
    """Give every meta tensor of `module` its weights: `sources(name)` stacked along dim 0. With
    `quantises` those of its fp8 weights are stored in another type, without scales."""
    places: dict[int, Tensor] = {}  # tied parameters are one object and stay one
    state = {}
    pairs: list[tuple[Tensor, str]] = []  # all at once: many reads are under way together
    for name, meta in module.state_dict(keep_vars=True).items():
        if id(meta) not in places:
            # fp8 weights and their scales stay what they are
            is_scaled = meta.dtype == E4M3 or name.endswith(".weight_scale")
            dtype = meta.dtype if is_scaled else placement.dtype
            place = torch.empty(meta.shape, dtype=dtype, device=placement.device)
            if not (quantises and is_scaled):
                pairs += _pairs(name, place, stored, sources(name))
            places[id(meta)] = place
        state[name] = places[id(meta)]
    stored.copy_into(pairs)
    if quantises:
        fill_narrow(_scaled_pairs(state, stored, sources), stored.copy_into, placement.dtype)
    module.load_state_dict(state, strict=True, assign=True)


def _scaled_pairs(
    state: Mapping[str, Tensor], stored: Source, sources: Callable[[str], tuple[str, ...]]
) -> Iterator[tuple[RowScaled, str]]:
    """As `_pairs`, of the fp8 weights in `state`."""
    for name, place in state.items():
        if place.dtype == E4M3:
            row = 0
            for values, source in _pairs(name, place, stored, sources(name)):
                end = row + len(values)
                yield RowScaled(values, state[f"{name}_scale"][row:end]), source
                row = end


def _derive_buffers(module: nn.Module, placement: Placement) -> None:
    """Fill CLIP's position ids, which are derived and not stored. No other module has a buffer."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise EngineFailed(f"no way is known to derive the buffer {name}")
        positions = torch.arange(buffer.shape[-1], device=placement.device)[None]
        module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)


def _pairs(
    name: str, place: Tensor, stored: Source, sources: Iterable[str]
) -> Iterator[tuple[Tensor, str]]:
    """The parts of `place` along dim 0, each with the stored name of its values."""
    row = 0
    for source in sources:
        shape = stored.shape(source)
        target = place[row : row + shape[0]]
        if tuple(shape[2:]) == (1, 1) and target.ndim == 2:  # 1x1 convolutions of old checkpoints
            target = target[:, :, None, None]
        yield target, source
        row += shape[0]
    if row != place.shape[0]:
        raise EngineFailed(f"{name} takes {place.shape[0]} rows; the checkpoint has {row}")
