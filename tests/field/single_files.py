"""The embedded FLUX checkpoint as one file: the inverse of what `convert` does, written on its own
from diffusers' converters read backwards.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.variants import FLUX

Tensors = dict[str, torch.Tensor]

ENDS = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
NORMS = {
    "norm_q": "img_attn.norm.query_norm",
    "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm",
    "norm_added_k": "txt_attn.norm.key_norm",
}


def transformer() -> Tensors:
    """The embedded transformer in its authors' names."""
    return bfl_names(load_file(FLUX / "transformer" / "diffusion_pytorch_model.safetensors"))


def bfl_names(stored: Tensors) -> Tensors:
    """A transformer in diffusers' names, renamed and joined."""
    made = {}
    for ours, theirs in ENDS.items():
        for leaf in ("weight", "bias"):
            if f"{ours}.{leaf}" in stored:
                made[f"{theirs}.{leaf}"] = stored[f"{ours}.{leaf}"]
    for leaf in ("weight", "bias"):
        scale, shift = stored[f"norm_out.linear.{leaf}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
        for i in range(count(stored, "transformer_blocks")):
            ours, theirs = f"transformer_blocks.{i}", f"double_blocks.{i}"
            for old, new in DOUBLE.items():
                made[f"{theirs}.{new}.{leaf}"] = stored[f"{ours}.{old}.{leaf}"]
            image = [stored[f"{ours}.attn.to_{x}.{leaf}"] for x in "qkv"]
            text = [stored[f"{ours}.attn.add_{x}_proj.{leaf}"] for x in "qkv"]
            made[f"{theirs}.img_attn.qkv.{leaf}"] = torch.cat(image)
            made[f"{theirs}.txt_attn.qkv.{leaf}"] = torch.cat(text)
        for i in range(count(stored, "single_transformer_blocks")):
            ours, theirs = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            parts = [f"{ours}.attn.to_{x}.{leaf}" for x in "qkv"] + [f"{ours}.proj_mlp.{leaf}"]
            made[f"{theirs}.linear1.{leaf}"] = torch.cat([stored[part] for part in parts])
            made[f"{theirs}.linear2.{leaf}"] = stored[f"{ours}.proj_out.{leaf}"]
            made[f"{theirs}.modulation.lin.{leaf}"] = stored[f"{ours}.norm.linear.{leaf}"]
    for i in range(count(stored, "transformer_blocks")):
        for old, new in NORMS.items():
            name = f"transformer_blocks.{i}.attn.{old}.weight"
            made[f"double_blocks.{i}.{new}.scale"] = stored[name]
    for i in range(count(stored, "single_transformer_blocks")):
        for old, new in (("q", "query"), ("k", "key")):
            name = f"single_transformer_blocks.{i}.attn.norm_{old}.weight"
            made[f"single_blocks.{i}.norm.{new}_norm.scale"] = stored[name]
    return made


def count(stored: Tensors, kind: str) -> int:
    return len({name.split(".")[1] for name in stored if name.startswith(f"{kind}.")})


VAE = (  # of diffusers' names, in this order
    (r"^(\w+)\.conv_norm_out\.", r"\1.norm_out."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
)


def vae() -> Tensors:
    """The embedded autoencoder in its authors' names."""
    stored = load_file(FLUX / "vae" / "diffusion_pytorch_model.safetensors")
    levels = 1 + max(int(found[1]) for n in stored if (found := re.search(r"up_blocks\.(\d+)", n)))
    made = {}
    for name, tensor in stored.items():
        is_attention = re.search(r"attentions\.0\.to_.*weight", name) is not None
        for pattern, written in VAE:
            name = re.sub(pattern, written, name)
        name = re.sub(r"\bup\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        made[name] = tensor[:, :, None, None] if is_attention else tensor
    return made


def all_in_one() -> Tensors:
    """Transformer, both encoders and autoencoder with ComfyUI's prefixes."""
    clip = load_file(FLUX / "text_encoder" / "model.safetensors")
    t5 = load_file(FLUX / "text_encoder_2" / "model.safetensors")
    return {
        **prefixed("model.diffusion_model.", transformer()),
        **prefixed("vae.", vae()),
        **prefixed("text_encoders.clip_l.transformer.text_model.", clip),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        **prefixed("text_encoders.t5xxl.transformer.", t5),
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
    }


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_weights(base: Path, target: Path, *parts: str) -> Path:
    """A copy of `base` whose `parts` have configs only."""
    target.mkdir()
    for entry in base.iterdir():
        if entry.name not in parts:
            (target / entry.name).symlink_to(entry)
            continue
        (target / entry.name).mkdir()
        for file in entry.iterdir():
            if file.suffix != ".safetensors":
                (target / entry.name / file.name).symlink_to(file)
    return target
