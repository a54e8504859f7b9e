"""A checkpoint in transformers' layout -> our modules on a device. Knows names and layouts, not the
shapes of traffic.

Configs go through transformers' own classes, so that both the nested form and the hub's flat one
(`rope_scaling`, `torch_dtype`) load. Weights come from safetensors only, single or in shards. Three
exact rewrites happen on the way: q, k, v and gate, up are packed; the two identical frames of a
still picture are folded into one; the vision MLP's width is padded with zeros.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from predictors.chat.decoder.decoder import Block, Decoder, TextShape
from predictors.chat.decoder.layers import GatedMLP
from predictors.chat.decoder.rotary import axis_of_frequency, inverse_frequencies
from predictors.chat.request import Sampling
from predictors.compute.checkpoint.accounting import FLOATS, Wanted, check_tensors
from predictors.compute.checkpoint.folder import reading
from predictors.compute.checkpoint.shards import Shards
from predictors.compute.kernels.fp8 import Fp8Linear
from predictors.errors import EngineFailed, InvalidRequest
from predictors.models.qwen2_5_vl.folder import (
    check_folder,
    check_generation,
    check_shapes,
    check_tokens,
    end_tokens,
    read_tokens,
)
from predictors.models.qwen2_5_vl.vision.grid import ROPE_THETA, VisionShape
from predictors.models.qwen2_5_vl.vision.tower import VisionBlock, VisionTower

log = logging.getLogger(__name__)

RENAMED = (  # what transformers 5 and its earlier releases call the same things
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNUSED = r"(^|\.)rotary_(pos_)?emb\.inv_freq$"
"""Stored names that are of no use here: frequencies are computed from the config."""
FRAMES = "visual.patch_embed.proj.weight"
"""Stored as a convolution over two frames."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the configs say. `frequencies` (head_dim/2,) fp32 are the rotary ones of the text."""

    text: TextShape
    vision: VisionShape
    frequencies: Tensor
    image_token: int
    eos_tokens: frozenset[int]
    defaults: Sampling


def read_architecture(checkpoint: Path) -> Architecture:
    """Read configs and the tokenizer's files; raises `InvalidRequest` for what we do not offer and
    `EngineFailed` for a folder that would be served wrong.
    """
    raw = check_folder(checkpoint)
    with reading("config.json"):
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        vision = _vision_shape(config.vision_config)
        check_shapes(config.text_config, config.vision_config)
        text, frequencies = _text_shape(config)
    tokens = read_tokens(checkpoint)
    check_tokens(raw, tokens, text.vocab)
    check_generation(checkpoint)
    with reading("generation_config.json"):
        defaults = _defaults(_generation(checkpoint))
    return Architecture(
        text=text,
        vision=vision,
        frequencies=frequencies,
        image_token=config.image_token_id,
        eos_tokens=end_tokens(checkpoint, raw, tokens),
        defaults=defaults,
    )


def _text_shape(config: Any) -> tuple[TextShape, Tensor]:
    text = config.text_config
    if "sliding_attention" in (text.layer_types or ()):
        raise InvalidRequest("this checkpoint uses sliding window attention, which is not offered")
    head_dim = text.hidden_size // text.num_attention_heads
    rope = dict(text.rope_parameters)
    scale = 1.0
    if rope.get("rope_type", "default") == "default":
        frequencies = inverse_frequencies(head_dim, rope["rope_theta"])
    else:  # stretched context: transformers knows how
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](text, torch.device("cpu"))
    shape = TextShape(
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        eps=text.rms_norm_eps,
        rope_sections=tuple(rope.get("mrope_section", (16, 24, 24))),
        rope_scale=scale,
        tied=bool(config.tie_word_embeddings),
        max_positions=text.max_position_embeddings,
    )
    return shape, frequencies


def _vision_shape(vision: Any) -> VisionShape:
    rope = getattr(vision, "rope_parameters", None) or {}
    return VisionShape(
        depth=vision.depth,
        hidden=vision.hidden_size,
        heads=vision.num_heads,
        mlp=vision.intermediate_size,
        out=vision.out_hidden_size,
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        channels=vision.in_channels,
        merge=vision.spatial_merge_size,
        window=vision.window_size,
        full_blocks=frozenset(vision.fullatt_block_indexes),
        rope_theta=float(rope.get("rope_theta", ROPE_THETA)),
    )


def _generation(checkpoint: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    except OSError:  # no such file: transformers' own defaults, which are greedy
        return GenerationConfig()  # type: ignore[no-untyped-call]


def _defaults(generation: GenerationConfig) -> Sampling:
    """The checkpoint's way to choose tokens; whatever it does not name stays neutral."""

    def given(name: str, neutral: float) -> float:
        value = getattr(generation, name, None)
        return neutral if value is None else value

    return Sampling(
        temperature=float(given("temperature", 1.0)) if generation.do_sample else 0.0,
        top_p=float(given("top_p", 1.0)),
        top_k=int(given("top_k", 0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)),
    )


def load_modules(
    checkpoint: Path, architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, VisionTower]:
    """Both modules on `device` in `dtype`, ready to run; raises `EngineFailed` naming a tensor
    that is missing, of another shape or of no use, before any memory is taken.
    """
    with Shards(checkpoint) as shards:
        stored = _named(shards)
        text = replace(architecture.text, tied=_is_tied(architecture.text, shards, stored))
        with torch.device("meta"):
            decoder, vision = Decoder(text), VisionTower(architecture.vision)
        _check(_slots(decoder, vision), shards, stored)
        for module in (decoder, vision):
            module.to(dtype).to_empty(device=device).requires_grad_(False).eval()
        if text.tied:  # to_empty gives each name memory of its own
            decoder.head.weight = decoder.embedding.weight
        decoder.frequencies = architecture.frequencies.to(device)
        decoder.axes = axis_of_frequency(text.rope_sections).to(device)
        _fill(_slots(decoder, vision), shards, stored)
    return decoder, vision


def _named(shards: Shards) -> dict[str, str]:
    """The stored names by those of the hub."""
    stored: dict[str, str] = {}
    for name in shards:
        other = stored.setdefault(_hub_name(name), name)
        if other != name:
            raise EngineFailed(f"the checkpoint holds one weight twice: {other} and {name}")
    return stored


def _is_tied(text: TextShape, shards: Shards, stored: Mapping[str, str]) -> bool:
    """Whether the embedding is the head, too. A head that is stored beside it and differs is used,
    whatever the config says: merged adapters leave such folders."""
    if not text.tied or HEAD not in stored or EMBEDDING not in stored:
        return text.tied
    names = (stored[EMBEDDING], stored[HEAD])
    one, other = (shards.headers()[name] for name in names)
    if one == other and one.dtype in FLOATS and torch.equal(*map(shards.read, names)):
        return True
    log.warning("tie_word_embeddings is set, but %s differs from the embedding: it is used", HEAD)
    return False


def _check(slots: Mapping[str, Tensor], shards: Shards, stored: Mapping[str, str]) -> None:
    """Every stored tensor has a place, and every place a tensor; only headers are read."""
    headers = shards.headers()
    for component, is_vision in (("the language model", False), ("the vision tower", True)):
        mine = {n: headers[s] for n, s in stored.items() if n.startswith("visual.") == is_vision}
        wanted = {
            name: Wanted(None if name == FRAMES else tuple(slot.shape))
            for name, slot in slots.items()
            if name in mine
        }
        tied = "" if HEAD in slots else f"|^{re.escape(HEAD)}$"
        check_tensors(component, mine, wanted, UNUSED + tied)
    if missing := slots.keys() - stored.keys():
        raise EngineFailed(f"the checkpoint lacks {len(missing)} weights, such as {min(missing)}")


def narrow(decoder: Decoder) -> None:
    """Quantise the linears of all blocks to fp8, in place; head, norms and vision tower stay."""
    for block in decoder.blocks:
        assert isinstance(block, Block)
        for part, names in ((block.attention, ("qkv", "out")), (block.mlp, ("gate_up", "down"))):
            for name in names:
                setattr(part, name, Fp8Linear.of(getattr(part, name)))


def _slots(decoder: Decoder, vision: VisionTower) -> dict[str, Tensor]:
    """Where each of the checkpoint's names goes."""
    return _decoder_slots(decoder) | _vision_slots(vision)


def _fill(slots: dict[str, Tensor], shards: Shards, stored: Mapping[str, str]) -> None:
    folded = slots.pop(FRAMES)
    shards.copy_into((slot, stored[name]) for name, slot in slots.items())
    # both frames are the same picture
    frames = shards.read(stored[FRAMES]).to(torch.float32).sum(2).flatten(1)
    if frames.shape != folded.shape:
        found, wanted = list(frames.shape), list(folded.shape)
        raise EngineFailed(f"weight {FRAMES} has shape {found}, the config asks for {wanted}")
    folded.copy_(frames)


def _hub_name(name: str) -> str:
    for longer, shorter in RENAMED:
        if name.startswith(longer):
            return shorter + name.removeprefix(longer)
    return name


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
        for kind in ("weight", "bias"):
            packed = getattr(block.attention.qkv, kind).data.split(block.attention.widths)
            for part, rows in zip("qkv", packed, strict=True):
                slots[f"{prefix}.self_attn.{part}_proj.{kind}"] = rows
        slots |= _mlp_slots(f"{prefix}.mlp", block.mlp, decoder.shape.mlp, ("weight",))
    return slots


def _mlp_slots(
    prefix: str, mlp: GatedMLP, hidden: int, kinds: tuple[str, ...]
) -> dict[str, Tensor]:
    """The first `hidden` rows of gate and up, and columns of down; whatever is padding becomes
    zero.
    """
    slots = {f"{prefix}.down_proj.weight": mlp.down.weight.data.zero_()[:, :hidden]}
    if "bias" in kinds:
        slots[f"{prefix}.down_proj.bias"] = mlp.down.bias.data
    for kind in kinds:
        gate, up = getattr(mlp.gate_up, kind).data.zero_().chunk(2)
        slots[f"{prefix}.gate_proj.{kind}"] = gate[:hidden]
        slots[f"{prefix}.up_proj.{kind}"] = up[:hidden]
    return slots


def _vision_slots(vision: VisionTower) -> dict[str, Tensor]:
    slots = {
        FRAMES: vision.patch_embed.weight.data,
        "visual.merger.ln_q.weight": vision.merger.norm.weight.data,
    }
    slots |= _linear("visual.merger.mlp.0", vision.merger.fc1)
    slots |= _linear("visual.merger.mlp.2", vision.merger.fc2)
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        prefix = f"visual.blocks.{i}"
        slots[f"{prefix}.norm1.weight"] = block.norm1.weight.data
        slots[f"{prefix}.norm2.weight"] = block.norm2.weight.data
        slots |= _linear(f"{prefix}.attn.qkv", block.attention.qkv)
        slots |= _linear(f"{prefix}.attn.proj", block.attention.out)
        slots |= _mlp_slots(f"{prefix}.mlp", block.mlp, vision.shape.mlp, ("weight", "bias"))
    return slots


def _linear(prefix: str, linear: nn.Linear) -> dict[str, Tensor]:
    return {f"{prefix}.weight": linear.weight.data, f"{prefix}.bias": linear.bias.data}
