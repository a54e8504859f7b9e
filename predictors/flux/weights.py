"""The weights of a checkpoint folder in diffusers layout, into our modules on the device. Knows
tensor names; knows no traffic.

They are read straight from safetensors, each into its place: `from_pretrained` sets process-wide
torch defaults meanwhile, and two rooms load at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from predictors.compute.device import Placement
from predictors.compute.fp8 import E4M3, Fp8Linear
from predictors.compute.shards import Shards
from predictors.errors import EngineFailed
from predictors.flux.facts import Facts
from predictors.flux.modules.conditioning import Conditioning
from predictors.flux.modules.decoder import OLD_ATTENTION, Decoder, decoder_names
from predictors.flux.modules.transformer import Shape, Transformer, quantized
from predictors.flux.request import BASE, FP8


class Source(Protocol):
    """Stored tensors by name."""

    def __contains__(self, name: str) -> bool:
        """Whether it is stored."""

    def shape(self, name: str) -> Sequence[int]:
        """Of one tensor."""

    def copy_into(self, pairs: Iterable[tuple[Tensor, str]]) -> None:
        """Each (target, stored name) into its place, in any dtype; raises `EngineFailed` for a
        tensor of another shape."""


Open = Callable[[str], AbstractContextManager[Source]]
"""From a component's name (`transformer`, `vae`, ...) to its tensors."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a checkpoint, on the device, in the placement's dtype."""

    transformers: Mapping[str, Transformer]
    """By form: `BASE`, `FP8`."""
    conditioning: Conditioning
    clip: CLIPTextModel
    t5: T5EncoderModel
    decoder: Decoder


def load_parts(
    facts: Facts,
    placement: Placement,
    forms: Collection[str] = (BASE,),
    open_component: Open | None = None,
) -> Parts:
    """All modules with their weights, the transformer in each of `forms`. Engine thread.

    `open_component` stands for the checkpoint's folder if given. Raises `EngineFailed` naming what
    is amiss.
    """
    opened = open_component or (lambda name: Shards(facts.folder / name))
    with torch.device("meta"):
        transformer = Transformer(facts.shape)
        conditioning = Conditioning(facts.shape)
        clip = CLIPTextModel(CLIPTextConfig.from_pretrained(facts.folder / "text_encoder"))
        t5 = T5EncoderModel(T5Config.from_pretrained(facts.folder / "text_encoder_2"))
        decoder = Decoder(facts.decoder)
    names = transformer_names(facts.shape)
    if facts.is_quantized:
        transformer, names = _stored_quantized(transformer, names)
    with opened("transformer") as stored:
        _fill(transformer, stored, placement, names.__getitem__)
        _fill(conditioning, stored, placement, conditioning_names(facts.shape).__getitem__)
    for module, name in ((clip, "text_encoder"), (t5, "text_encoder_2")):
        # T5's activations overflow float16
        wide = module is t5 and placement.dtype == torch.float16
        with opened(name) as stored:
            own = replace(placement, dtype=torch.float32) if wide else placement
            _fill(module, stored, own, partial(_stored_as, stored))
    with opened("vae") as stored:
        is_old = OLD_ATTENTION in stored
        names = decoder_names(facts.decoder, has_old_attention=is_old)
        _fill(decoder, stored, placement, names.__getitem__)
    for part in (transformer, conditioning, clip, t5, decoder):
        _derive_buffers(part, placement)
        part.eval().requires_grad_(False)
    return Parts(_in_forms(transformer, facts, forms), conditioning, clip, t5, decoder)


def _in_forms(
    transformer: Transformer, facts: Facts, forms: Collection[str]
) -> dict[str, Transformer]:
    if facts.is_quantized:
        if BASE in forms:
            raise EngineFailed("the checkpoint holds fp8 weights only: no tier can be lossless")
        return {FP8: transformer}
    held = {BASE: transformer} if BASE in forms else {}
    if FP8 in forms:
        held[FP8] = quantized(transformer, keep=BASE in forms)
    return held


def _stored_quantized(
    transformer: Transformer, names: dict[str, tuple[str, ...]]
) -> tuple[Transformer, dict[str, tuple[str, ...]]]:
    """The still empty module with fp8 linears, and where their scales are stored."""
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


def _stored_as(stored: Source, name: str) -> tuple[str]:
    """The stored name of a library module's parameter: with or without `text_model.`, and T5's
    input embedding under either of its two names."""
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
) -> None:
    """Give every meta tensor of `module` its weights: `sources(name)` stacked along dim 0."""
    places: dict[int, Tensor] = {}  # tied parameters are one object and stay one
    state = {}
    pairs: list[tuple[Tensor, str]] = []  # all at once: many reads are under way together
    for name, meta in module.state_dict(keep_vars=True).items():
        if id(meta) not in places:
            # fp8 weights and their scales stay what they are
            is_scaled = meta.dtype == E4M3 or name.endswith(".weight_scale")
            dtype = meta.dtype if is_scaled else placement.dtype
            place = torch.empty(meta.shape, dtype=dtype, device=placement.device)
            pairs += _pairs(name, place, stored, sources(name))
            places[id(meta)] = place
        state[name] = places[id(meta)]
    stored.copy_into(pairs)
    module.load_state_dict(state, strict=True, assign=True)


def _derive_buffers(module: nn.Module, placement: Placement) -> None:
    """CLIP's position ids are derived, not stored; no other module here has a buffer."""
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
    """The stretches of `place` along dim 0 and what is stored for each."""
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
