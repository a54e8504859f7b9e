"""A checkpoint in transformers' layout: the decoder's shape, and the weights of both modules.

Weights come from safetensors only, single or in shards. Two exact rewrites happen on the way: q, k,
v and gate, up are packed, and the two identical frames of a still picture are folded into one; the
second frame's part stands beside that, for films.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from predictors.chat.decoder.decoder import Block, Decoder, DecoderShape
from predictors.chat.decoder.layers import GatedMLP
from predictors.chat.decoder.rotary import inverse_frequencies
from predictors.chat.folder import rope_of
from predictors.chat.tensors import (
    EMBEDDING,
    FRAMES,
    HEAD,
    LANGUAGE,
    SECOND_FRAME,
    VISION,
    DecoderSizes,
    by_hub_names,
    check_weights,
    component_of,
)
from predictors.compute.checkpoint.accounting import FLOATS
from predictors.compute.checkpoint.folder import is_real, shown
from predictors.compute.checkpoint.quantised.source import PlainTensors, log_quantised
from predictors.compute.checkpoint.values import check_magnitudes
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import Fp8Linear
from predictors.errors import EngineFailed

log = logging.getLogger(__name__)

V = TypeVar("V", bound=nn.Module)


def decoder_shape(
    checkpoint: Path,
    sizes: DecoderSizes,
    text: Mapping[str, Any],
    axes: tuple[int, ...],
    **options: Any,
) -> DecoderShape:
    """The decoder of a config whose `text` values have all defaults; `options` are
    `DecoderShape`'s."""
    frequencies, scale = rotary_frequencies(checkpoint, sizes.head_dim, text)
    eps = text["rms_norm_eps"]
    if not is_real(eps):
        raise EngineFailed(f"config.json: rms_norm_eps is {shown(eps)}, not a number")
    return DecoderShape(
        vocab=sizes.vocab,
        hidden=sizes.hidden,
        mlp=sizes.mlp,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        eps=eps,
        frequencies=tuple(frequencies.tolist()),
        axes=axes,
        rope_scale=scale,
        tied=sizes.tied,
        max_positions=sizes.max_positions,
        **options,
    )


def rotary_frequencies(
    checkpoint: Path, head_dim: int, text: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """The rotary frequencies of a decoder, float32 (head_dim / 2,), and the factor of its rotary
    values. Scaling for long contexts is transformers' own."""
    rope = rope_of(text)
    if rope.get("rope_type", rope.get("type", "default")) in ("default", "mrope"):
        theta = rope.get("rope_theta", text["rope_theta"])
        if not is_real(theta) or theta <= 0:
            raise EngineFailed(f"config.json: rope_theta is {shown(theta)}, not a number above 0")
        return inverse_frequencies(head_dim, theta), 1.0
    from transformers import AutoConfig  # takes seconds, and few folders need it
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True).text_config
    function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    frequencies, scale = function(config, torch.device("cpu"))
    return frequencies, scale


def load_modules(
    checkpoint: Path,
    shape: DecoderShape,
    make_vision: Callable[[], V],
    vision_slots: Callable[[V], dict[str, Tensor]],
    placement: Placement,
    variant: str = "",
) -> tuple[Decoder, V]:
    """Both modules on the device in its dtype, ready to run; `vision_slots` gives the place of each
    stored name that begins with `visual.`, and of `SECOND_FRAME`; `variant` is the wanted one of
    the files. Raises `EngineFailed` naming a tensor that is missing, of another shape or of no use,
    before any memory is taken."""
    with PlainTensors(checkpoint, component_of, variant) as opened:
        stored = by_hub_names({name: name for name in opened})
        shape = replace(shape, tied=_is_tied(shape, opened, stored))
        with torch.device("meta"):
            decoder, vision = Decoder(shape), make_vision()
        slots = _decoder_slots(decoder) | vision_slots(vision)
        slots.pop(SECOND_FRAME)
        _check(slots, opened, stored, placement)
        for module in (decoder, vision):
            module.to(placement.dtype).to_empty(device=placement.device)
            module.requires_grad_(False).eval()
        if shape.tied:  # to_empty gives each name memory of its own
            decoder.head.weight = decoder.embedding.weight
        decoder.frequencies = torch.tensor(shape.frequencies, device=placement.device)
        decoder.axes = torch.tensor(shape.axes, device=placement.device)
        _fill(_decoder_slots(decoder) | vision_slots(vision), opened, stored)
    return decoder, vision


def quantize_decoder(decoder: Decoder) -> None:
    """Quantise the linears of all blocks to fp8, in place; embedding, norms and head stay."""
    for block in decoder.blocks:
        assert isinstance(block, Block)
        for part, names in ((block.attention, ("qkv", "out")), (block.mlp, ("gate_up", "down"))):
            for name in names:
                setattr(part, name, Fp8Linear.of(getattr(part, name)))


def _is_tied(shape: DecoderShape, opened: PlainTensors, stored: Mapping[str, str]) -> bool:
    """True if the embedding is the head, too. A stored head that differs is used, whatever the
    config says: merged adapters leave such folders."""
    if not shape.tied or HEAD not in stored or EMBEDDING not in stored:
        return shape.tied
    names = (stored[EMBEDDING], stored[HEAD])
    one, other = (opened.headers()[name] for name in names)
    if one == other and one.dtype in FLOATS and torch.equal(*map(opened.read, names)):
        return True
    log.warning("tie_word_embeddings is set, but %s differs from the embedding: it is used", HEAD)
    return False


def _check(
    slots: Mapping[str, Tensor],
    opened: PlainTensors,
    stored: Mapping[str, str],
    placement: Placement,
) -> None:
    """Every stored tensor has a place, and every place a tensor; only headers are read."""
    headers = {name: opened.headers()[theirs] for name, theirs in stored.items()}
    # frames are folded, and checked when they are
    shapes = {name: None if name == FRAMES else tuple(slot.shape) for name, slot in slots.items()}
    check_weights(headers, shapes)
    for component in (LANGUAGE, VISION):
        names = [stored[name] for name in slots if component_of(name) == component]
        log_quantised(component, opened.quantised, names, placement.dtype)


def _fill(slots: dict[str, Tensor], opened: PlainTensors, stored: Mapping[str, str]) -> None:
    folded, second = slots.pop(FRAMES), slots.pop(SECOND_FRAME)
    filled = [(slot, stored[name]) for name, slot in slots.items()]
    opened.copy_into(filled)
    both = opened.read(stored[FRAMES]).to(torch.float32)
    frames = both.sum(2).flatten(1)  # both are the same picture
    if frames.shape != folded.shape:
        found, wanted = list(frames.shape), list(folded.shape)
        raise EngineFailed(f"weight {FRAMES} has shape {found}, the config asks for {wanted}")
    folded.copy_(frames)
    second.copy_(both[:, :, -1].flatten(1))
    check_magnitudes([*filled, (folded, stored[FRAMES])])


def _decoder_slots(decoder: Decoder) -> dict[str, Tensor]:
    """Where each of the checkpoint's names goes: views into the packed weights."""
    slots = {
        EMBEDDING: decoder.embedding.weight.data,
        "model.norm.weight": decoder.norm.weight.data,
    }
    if not decoder.shape.tied:
        slots[HEAD] = decoder.head.weight.data
    for i, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        prefix = f"model.layers.{i}"
        slots[f"{prefix}.input_layernorm.weight"] = block.norm1.weight.data
        slots[f"{prefix}.post_attention_layernorm.weight"] = block.norm2.weight.data
        slots[f"{prefix}.self_attn.o_proj.weight"] = block.attention.out.weight.data
        for kind in ("weight", "bias") if decoder.shape.qkv_bias else ("weight",):
            packed = getattr(block.attention.qkv, kind).data.split(block.attention.widths)
            for part, rows in zip("qkv", packed, strict=True):
                slots[f"{prefix}.self_attn.{part}_proj.{kind}"] = rows
        for part, norm in (("q", block.attention.q_norm), ("k", block.attention.k_norm)):
            if norm is not None:
                slots[f"{prefix}.self_attn.{part}_norm.weight"] = norm.weight.data
        slots |= mlp_slots(f"{prefix}.mlp", block.mlp, decoder.shape.mlp, ("weight",))
    return slots


def mlp_slots(prefix: str, mlp: GatedMLP, hidden: int, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """First `hidden` rows of gate and up, and columns of down; the padding becomes zero."""
    slots = {f"{prefix}.down_proj.weight": mlp.down.weight.data.zero_()[:, :hidden]}
    if "bias" in kinds:
        slots[f"{prefix}.down_proj.bias"] = mlp.down.bias.data
    for kind in kinds:
        gate, up = getattr(mlp.gate_up, kind).data.zero_().chunk(2)
        slots[f"{prefix}.gate_proj.{kind}"] = gate[:hidden]
        slots[f"{prefix}.up_proj.{kind}"] = up[:hidden]
    return slots


def linear_slots(prefix: str, linear: nn.Linear | nn.LayerNorm) -> dict[str, Tensor]:
    return {f"{prefix}.weight": linear.weight.data, f"{prefix}.bias": linear.bias.data}
