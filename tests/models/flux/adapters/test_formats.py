"""Adapter files of every spelling that is read: the same adapter gives the same changes, and those
of diffusers' own converters at FLUX.1's real width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as converters

from predictors.models.flux.adapters.places import Places
from predictors.models.flux.adapters.reading import StoredAdapter
from predictors.models.flux.tensors import with_defaults
from tests.models.flux.adapters.adapter_files import (
    ATTENTION,
    CLIP_Q,
    SINGLE,
    T5_Q,
    Tensors,
    diffusers,
    fused,
    halves,
    kohya,
    peft_folder,
    read,
    saved,
)

RANK = 4
IMAGE = {x: halves(f"{ATTENTION}.to_{x}", RANK) for x in "qkv"}
TEXT = {x: halves(f"{ATTENTION}.add_{x}_proj", RANK) for x in "qkv"}
ALONE = {x: halves(f"{SINGLE}.attn.to_{x}", RANK) for x in "qkv"}
OUT = {
    f"{ATTENTION}.to_out.0": halves(f"{ATTENTION}.to_out.0", RANK),
    f"{ATTENTION}.to_add_out": halves(f"{ATTENTION}.to_add_out", RANK),
    f"{SINGLE}.proj_out": halves(f"{SINGLE}.proj_out", RANK),
}
CHANGES = {
    **{f"{ATTENTION}.to_{x}": own for x, own in IMAGE.items()},
    **{f"{ATTENTION}.add_{x}_proj": own for x, own in TEXT.items()},
    **{f"{SINGLE}.attn.to_{x}": own for x, own in ALONE.items()},
    **OUT,
}
"""An adapter of attention alone, which all formats can hold."""


def without_part(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def authors(prefix: str, ends: tuple[str, str]) -> Tensors:
    """In the names of FLUX's authors, fused."""
    mlp_rows = halves(f"{SINGLE}.proj_mlp", 1)[1].shape[0]
    down, up = fused(*ALONE.values())
    padded = np.concatenate([up, np.zeros((mlp_rows, up.shape[1]), np.float32)])
    layers = {
        "double_blocks.0.img_attn.qkv": fused(*IMAGE.values()),
        "double_blocks.0.txt_attn.qkv": fused(*TEXT.values()),
        "single_blocks.1.linear1": (down, padded),
        "double_blocks.0.img_attn.proj": OUT[f"{ATTENTION}.to_out.0"],
        "double_blocks.0.txt_attn.proj": OUT[f"{ATTENTION}.to_add_out"],
        "single_blocks.1.linear2": OUT[f"{SINGLE}.proj_out"],
    }
    return {
        f"{prefix}{name}.{end}.weight": half
        for name, own in layers.items()
        for end, half in zip(ends, own, strict=True)
    }


def flat(tensors: Tensors, prefix: str) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        path, end, weight = name.rsplit(".", 2)
        found[f"{prefix}{path.replace('.', '_')}.{end}.{weight}"] = tensor
    return found


def with_alphas(tensors: Tensors, scale: float = 1.0) -> Tensors:
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".lora_down.weight"):
            layer = name.removesuffix(".lora_down.weight")
            found[f"{layer}.alpha"] = np.array(scale * len(tensor), np.float32)
    return found


def xlabs() -> Tensors:
    layers = {
        "double_blocks.0.processor.qkv_lora1": fused(*IMAGE.values()),
        "double_blocks.0.processor.qkv_lora2": fused(*TEXT.values()),
        "double_blocks.0.processor.proj_lora1": OUT[f"{ATTENTION}.to_out.0"],
        "double_blocks.0.processor.proj_lora2": OUT[f"{ATTENTION}.to_add_out"],
        "single_blocks.1.processor.qkv_lora": fused(*ALONE.values()),
        "single_blocks.1.processor.proj_lora": OUT[f"{SINGLE}.proj_out"],
    }
    return {
        f"{name}.{end}.weight": half
        for name, own in layers.items()
        for end, half in zip(("down", "up"), own, strict=True)
    }


LORA = ("lora_down", "lora_up")
PEFT = ("lora_A", "lora_B")
DOWN_UP = {".lora_A.": ".lora_down.", ".lora_B.": ".lora_up."}


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for before, after in names.items():
            name = name.replace(before, after)
        found[name] = tensor
    return found


OLD = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
PLAIN = diffusers(CHANGES)
FORMATS: dict[str, tuple[str, Tensors]] = {
    "diffusers": ("diffusers", PLAIN),
    "with PEFT's name of the adapter": ("diffusers", diffusers(CHANGES, ".default")),
    "diffusers before PEFT": ("diffusers", renamed(PLAIN, OLD)),
    "one part without its name": ("diffusers", without_part(PLAIN)),
    "diffusers' names with alphas": ("diffusers", with_alphas(renamed(PLAIN, DOWN_UP))),
    "kohya": ("kohya", with_alphas(flat(authors("", LORA), "lora_unet_"))),
    "kohya without alphas": ("kohya", flat(authors("", LORA), "lora_unet_")),
    "OneTrainer": (
        "OneTrainer",
        with_alphas(flat(without_part(renamed(PLAIN, DOWN_UP)), "lora_transformer_")),
    ),
    "LyCORIS": (
        "LyCORIS",
        with_alphas(flat(without_part(renamed(PLAIN, DOWN_UP)), "lycoris_")),
    ),
    "XLabs": ("XLabs", xlabs()),
    "ComfyUI": ("ComfyUI", authors("diffusion_model.", PEFT)),
    "ComfyUI with kohya's ends": ("ComfyUI", with_alphas(authors("diffusion_model.", LORA))),
    "PEFT over the authors' model": ("PEFT", authors("base_model.model.", PEFT)),
    "the authors' names alone": ("Black Forest Labs", authors("", PEFT)),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    return read(saved(tmp_path_factory.mktemp("plain"), PLAIN))


@pytest.mark.parametrize("name", list(FORMATS))
def test_one_adapter_is_the_same_in_every_format(
    name: str, expected: StoredAdapter, tmp_path: Path
) -> None:
    kind, tensors = FORMATS[name]
    found = read(saved(tmp_path, tensors))
    assert found.kind == kind
    assert found.changes.keys() == CHANGES.keys()
    for path, (down, up) in CHANGES.items():
        assert np.array_equal(found.changes[path].down, down), path
        assert np.array_equal(found.changes[path].up, up), path
    assert found.digest == expected.digest


def test_a_peft_folder_is_scaled_as_its_config_says(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": x for name, x in without_part(PLAIN).items()}
    folder = peft_folder(
        tmp_path / "peft", tensors, r=RANK, lora_alpha=2 * RANK,
        alpha_pattern={"to_q": RANK, "^transformer_blocks.0.attn.to_k": 3 * RANK},
        target_modules=["to_q", "to_k"], bias="none", lora_dropout=0.1, peft_version="0.18.0",
    )  # fmt: skip
    found = read(folder).changes
    for path, (_, up) in CHANGES.items():
        scale = 1 if path.endswith("to_q") else 3 if path == f"{ATTENTION}.to_k" else 2
        assert np.array_equal(found[path].up, up * scale), path
    stabilised = read(peft_folder(folder, tensors, r=RANK, lora_alpha=8, use_rslora=True)).changes
    assert np.array_equal(stabilised[f"{ATTENTION}.to_q"].up, IMAGE["q"][1] * 4)  # 8 / sqrt(4)


def test_diffusers_own_config_in_the_header_counts(tmp_path: Path) -> None:
    text = '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": false}'
    path = saved(tmp_path, PLAIN, lora_adapter_metadata=text, format="pt")
    assert np.array_equal(read(path).changes[f"{ATTENTION}.to_q"].up, IMAGE["q"][1] * 2)


def test_text_encoders_are_read_in_every_spelling(tmp_path: Path) -> None:
    clip, t5 = halves(CLIP_Q, 2), halves(T5_Q, 3)
    clip_names = [
        f"{CLIP_Q}.lora_A.weight",
        f"{CLIP_Q}.lora_linear_layer.down.weight",
        f"{CLIP_Q.replace('q_proj', 'to_q_lora')}.down.weight",
        f"{CLIP_Q.replace('text_model.', '')}.lora_A.weight",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_down"
        ".weight",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ]
    t5_names = [
        f"{T5_Q}.lora_A.weight",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_down.weight",
    ]
    ups = {"lora_A": "lora_B", "lora_down": "lora_up", ".down.": ".up."}
    for names, path, (down, up) in ((clip_names, CLIP_Q, clip), (t5_names, T5_Q, t5)):
        for name in names:
            other = name
            for before, after in ups.items():
                other = other.replace(before, after)
            found = read(saved(tmp_path, {name: down, other: up})).changes
            assert list(found) == [path], name
            assert np.array_equal(found[path].up, up)


def test_every_float_type_is_read_as_float32(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    down, up = (torch.from_numpy(half) for half in IMAGE["q"])
    path = f"{ATTENTION}.to_q"
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        stored = {f"{path}.lora_A.weight": down.to(dtype), f"{path}.lora_B.weight": up.to(dtype)}
        save_file(stored, tmp_path / "a.safetensors")
        found = read(tmp_path / "a.safetensors").changes[path]
        assert np.array_equal(found.down, down.to(dtype).float().numpy()), dtype
        assert np.array_equal(found.up, up.to(dtype).float().numpy()), dtype


# -- diffusers' converters -------------------------------------------------------------------------
WIDTH = 3072
FULL = Places(
    {
        "transformer": with_defaults("transformer", {"guidance_embeds": True}),
        "text_encoder": with_defaults(
            "text_encoder", {"hidden_size": 768, "intermediate_size": 3072}
        ),
        "text_encoder_2": with_defaults("text_encoder_2", {}),
    }
)


def layer(rng: np.random.Generator, name: str, out: int, into: int, rank: int = 2) -> Tensors:
    down = rng.normal(size=(rank, into)).astype(np.float32)
    return kohya(name, down, rng.normal(size=(out, rank)).astype(np.float32))


def kohya_of_full_width(rng: np.random.Generator) -> Tensors:
    """A double and a single block, and what FLUX has outside of blocks."""
    tensors: Tensors = {}
    for stream in ("img", "txt"):
        block = f"lora_unet_double_blocks_7_{stream}"
        tensors |= layer(rng, f"{block}_attn_qkv", 3 * WIDTH, WIDTH, rank=3)
        tensors |= layer(rng, f"{block}_attn_proj", WIDTH, WIDTH)
        tensors |= layer(rng, f"{block}_mlp_0", 4 * WIDTH, WIDTH)
        tensors |= layer(rng, f"{block}_mlp_2", WIDTH, 4 * WIDTH)
        tensors |= layer(rng, f"{block}_mod_lin", 6 * WIDTH, WIDTH)
    tensors |= layer(rng, "lora_unet_single_blocks_37_linear1", 7 * WIDTH, WIDTH, rank=4)
    tensors |= layer(rng, "lora_unet_single_blocks_37_linear2", WIDTH, 5 * WIDTH)
    tensors |= layer(rng, "lora_unet_single_blocks_37_modulation_lin", 3 * WIDTH, WIDTH)
    for name, into in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        tensors |= layer(rng, f"lora_unet_{name}_in_layer", WIDTH, into)
        tensors |= layer(rng, f"lora_unet_{name}_out_layer", WIDTH, WIDTH)
    tensors |= layer(rng, "lora_unet_img_in", WIDTH, 64)
    tensors |= layer(rng, "lora_unet_txt_in", WIDTH, 4096)
    tensors |= layer(rng, "lora_unet_final_layer_linear", 64, WIDTH)
    tensors |= layer(rng, "lora_unet_final_layer_adaLN_modulation_1", 2 * WIDTH, WIDTH)
    return tensors


def as_torch(tensors: Tensors) -> dict[str, Any]:
    return {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}


def by_path(theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Down and up of diffusers' result by our path. Outside of blocks it leaves out the part, and
    its pipeline then drops these tensors."""
    found = {}
    for name, down in theirs.items():
        if ".lora_A." in name:
            path = name.removesuffix(".lora_A.weight")
            up = theirs[f"{path}.lora_B.weight"]
            full = path if path.startswith(("transformer.", "text_enc")) else f"transformer.{path}"
            found[full] = (down.numpy(), up.numpy())
    return found


def test_kohya_gives_what_diffusers_makes_of_it_at_3072(tmp_path: Path) -> None:
    tensors = kohya_of_full_width(np.random.default_rng(1))
    ours = read(saved(tmp_path, tensors), FULL).changes
    theirs = by_path(converters._convert_kohya_flux_lora_to_diffusers(as_torch(tensors)))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 + 6 + 10
    for path, (down, up) in theirs.items():
        assert np.array_equal(ours[path].down, down), path
        assert np.array_equal(ours[path].up, up), path


def test_alphas_and_sparse_layers_give_diffusers_product_at_3072(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    parts = [
        (
            rng.normal(size=(2, WIDTH)).astype(np.float32),
            rng.normal(size=(WIDTH, 2)).astype(np.float32),
        )
        for _ in "qkv"
    ]
    tensors = kohya("lora_unet_double_blocks_0_img_attn_qkv", *fused(*parts), alpha=1.5)
    tensors |= layer(rng, "lora_unet_single_blocks_0_linear1", 7 * WIDTH, WIDTH, rank=4)
    tensors["lora_unet_single_blocks_0_linear1.alpha"] = np.array(13.0, np.float32)
    clip = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    tensors |= layer(rng, clip, 768, 768) | {f"{clip}.alpha": np.array(1.0, np.float32)}
    ours = read(saved(tmp_path, tensors), FULL).changes
    theirs = converters._convert_kohya_flux_lora_to_diffusers(as_torch(tensors))
    clip_path = "text_encoder.text_model.encoder.layers.3.self_attn"
    for half, end in (("down", "lora_A"), ("up", "lora_B")):  # as its loader goes on to do
        found = theirs.pop(f"{clip_path}.to_q_lora.{half}.weight")
        theirs[f"{clip_path}.q_proj.{end}.weight"] = found
    products = by_path(theirs)
    assert ours.keys() == products.keys()
    assert ours["transformer.transformer_blocks.0.attn.to_q"].rank == 2
    for path, (down, up) in products.items():
        x = rng.normal(size=down.shape[1])
        wanted = up.astype(np.float64) @ (down.astype(np.float64) @ x)
        found = ours[path].up.astype(np.float64) @ (ours[path].down.astype(np.float64) @ x)
        assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max(), path


def test_xlabs_gives_what_diffusers_makes_of_it_at_3072(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = {
        "double_blocks.5.processor.qkv_lora1": (3 * WIDTH, WIDTH),
        "double_blocks.5.processor.qkv_lora2": (3 * WIDTH, WIDTH),
        "double_blocks.5.processor.proj_lora1": (WIDTH, WIDTH),
        "double_blocks.5.processor.proj_lora2": (WIDTH, WIDTH),
        "single_blocks.9.processor.qkv_lora": (3 * WIDTH, WIDTH),
        "single_blocks.9.processor.proj_lora": (WIDTH, 5 * WIDTH),
    }
    tensors: Tensors = {}
    for name, (out, into) in sizes.items():
        made = layer(rng, name, out, into)
        tensors |= renamed(made, {".lora_down.": ".down.", ".lora_up.": ".up."})
    ours = read(saved(tmp_path, tensors), FULL).changes
    theirs = by_path(converters._convert_xlabs_flux_lora_to_diffusers(as_torch(tensors)))
    assert ours.keys() == theirs.keys()
    for path, (down, up) in theirs.items():
        assert np.array_equal(ours[path].down, down), path
        assert np.array_equal(ours[path].up, up), path


def test_the_authors_names_give_what_diffusers_makes_of_them_at_3072(tmp_path: Path) -> None:
    """fal's Kontext trainer, whose converter takes whole models only: every layer, at rank 1."""
    rng = np.random.default_rng(4)
    sizes: dict[str, tuple[int, int]] = {"final_layer.linear": (64, WIDTH)}
    for i in range(19):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            sizes |= {
                f"{block}_mod.lin": (6 * WIDTH, WIDTH),
                f"{block}_attn.qkv": (3 * WIDTH, WIDTH),
                f"{block}_attn.proj": (WIDTH, WIDTH),
                f"{block}_mlp.0": (4 * WIDTH, WIDTH),
                f"{block}_mlp.2": (WIDTH, 4 * WIDTH),
            }
    for i in range(38):
        sizes |= {
            f"single_blocks.{i}.modulation.lin": (3 * WIDTH, WIDTH),
            f"single_blocks.{i}.linear1": (7 * WIDTH, WIDTH),
            f"single_blocks.{i}.linear2": (WIDTH, 5 * WIDTH),
        }
    tensors: Tensors = {}
    for name, (out, into) in sizes.items():
        made = layer(rng, f"base_model.model.{name}", out, into, rank=1)
        tensors |= renamed(made, {".lora_down.": ".lora_A.", ".lora_up.": ".lora_B."})
    ours = read(saved(tmp_path, tensors), FULL).changes
    theirs = by_path(converters._convert_fal_kontext_lora_to_diffusers(as_torch(tensors)))
    assert ours.keys() == theirs.keys()
    for path, (down, up) in theirs.items():
        assert np.array_equal(ours[path].down, down), path
        assert np.array_equal(ours[path].up, up), path
