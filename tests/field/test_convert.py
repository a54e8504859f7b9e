"""FLUX checkpoints in one file, as people fetch them for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from predictors.__main__ import main
from predictors.diffusion.request import ImageParameters
from predictors.errors import EngineFailed, InvalidRequest, ServingError
from predictors.models.flux import convert
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.single_file import read_single_file
from tests.diffusion.driver import open_driver
from tests.field.single_files import (
    Tensors,
    all_in_one,
    prefixed,
    transformer,
    vae,
    without_weights,
)
from tests.variants import FLUX, config, variant

COMFY = "model.diffusion_model."
QKV = "double_blocks.0.img_attn.qkv.weight"
LINEAR1 = "single_blocks.1.linear1.weight"
IMAGE = ImageParameters("a large red circle", num_inference_steps=2, seed=3)
E4M3 = torch.float8_e4m3fn
FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def saved(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def converted(tmp_path: Path, tensors: Tensors, base: Path = FLUX) -> Path:
    """A folder made of one file with these tensors."""
    source = saved(tmp_path / "in" / "my-flux.safetensors", tensors)
    convert.convert_checkpoint(source, tmp_path / "made", base)
    return tmp_path / "made"


def stored(folder: Path, part: str = "transformer") -> Tensors:
    return load_file(folder / part / FILES[part])


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def refusal(tmp_path: Path, tensors: Tensors, base: Path = FLUX) -> str:
    source = saved(tmp_path / "in" / "my-flux.safetensors", tensors)
    with pytest.raises(ServingError) as failure:
        convert.convert_checkpoint(source, tmp_path / "made", base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]  # nothing is left
    assert str(tmp_path) not in failure.value.message
    return failure.value.message


# -- right -----------------------------------------------------------------------------------------
LAYOUTS: dict[str, Callable[[], Tensors]] = {
    "its authors' names": transformer,
    "ComfyUI's prefix": lambda: prefixed(COMFY, transformer()),
    "a shorter prefix": lambda: prefixed("diffusion_model.", transformer()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_transformer_in_one_file_gives_the_folder_it_was_made_of(
    tmp_path: Path, layout: str
) -> None:
    folder = converted(tmp_path, LAYOUTS[layout]())
    for part in FILES:
        assert_same(stored(folder, part), stored(FLUX, part))
    made, original = (
        json.loads((each / "transformer" / "config.json").read_text()) for each in (folder, FLUX)
    )
    assert made == {k: v for k, v in original.items() if k != "_diffusers_version"}


def test_the_report_says_where_each_part_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = prefixed(COMFY, transformer()) | prefixed("vae.", vae())
    source, target = saved(tmp_path / "in" / "one.safetensors", tensors), tmp_path / "made"
    convert_it = ["convert", str(source), str(target), "--base", str(FLUX), "--json"]
    assert main(convert_it) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == str(target)
    parts = {each.pop("part"): each for each in report["parts"]}
    copy = {"source": FLUX.name, "is_copied": True, "bytes": None, "quantisation": ""}
    assert parts["text_encoder"] == parts["text_encoder_2"] == copy
    assert (parts["vae"]["source"], parts["vae"]["is_copied"]) == ("one.safetensors", False)
    assert 0 < parts["transformer"]["bytes"] < source.stat().st_size
    assert main(convert_it) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == "made exists already; nothing was written"


def test_an_all_in_one_file_and_a_base_without_weights_draw_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(tmp_path / "in" / "all.safetensors", all_in_one())
    base = without_weights(FLUX, tmp_path / "base", *FILES)
    target = tmp_path / "made"
    assert main(["convert", str(source.parent), str(target), "--base", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "transformer", "vae", "text_encoder", "text_encoder_2",
    ]  # fmt: skip
    assert all("from all.safetensors" in line for line in lines)
    assert_same(stored(target, "vae"), stored(FLUX, "vae"))
    drawn = open_driver(target).draw(IMAGE)
    assert np.array_equal(drawn, open_driver().draw(IMAGE))


def test_a_file_with_the_older_ending_is_found_in_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "in" / "flux1-dev.sft", transformer())
    convert.convert_checkpoint(tmp_path / "in", tmp_path / "made", FLUX)
    assert_same(stored(tmp_path / "made"), stored(FLUX))


def test_parts_that_the_file_holds_replace_those_of_the_base(tmp_path: Path) -> None:
    tensors = prefixed(COMFY, transformer()) | prefixed("vae.", vae())
    tensors["vae.decoder.conv_out.bias"] = tensors["vae.decoder.conv_out.bias"] + 1
    folder = converted(tmp_path, tensors)
    assert torch.equal(
        stored(folder, "vae")["decoder.conv_out.bias"],
        stored(FLUX, "vae")["decoder.conv_out.bias"] + 1,
    )
    assert_same(stored(folder, "text_encoder_2"), stored(FLUX, "text_encoder_2"))


def test_the_mapping_is_that_of_diffusers_for_a_transformer_of_full_width(tmp_path: Path) -> None:
    """All rows of a 3072-wide transformer with one block of each kind; few columns, since both
    mappings leave columns as they are."""
    generator = torch.Generator().manual_seed(0)
    width, tensors = 3072, {}

    def linear(name: str, rows: int, columns: int = 2) -> None:
        for leaf, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            made = torch.randn(shape, generator=generator)
            tensors[f"{name}.{leaf}"] = made.to(torch.bfloat16)

    for name in ("time_in", "vector_in", "guidance_in"):
        linear(f"{name}.in_layer", width)
        linear(f"{name}.out_layer", width)
    linear("txt_in", width)
    linear("img_in", width, 64)
    for stream in ("img", "txt"):
        linear(f"double_blocks.0.{stream}_mod.lin", 6 * width)
        linear(f"double_blocks.0.{stream}_attn.qkv", 3 * width)
        linear(f"double_blocks.0.{stream}_attn.proj", width)
        linear(f"double_blocks.0.{stream}_mlp.0", 4 * width)
        linear(f"double_blocks.0.{stream}_mlp.2", width)
    linear("single_blocks.0.modulation.lin", 3 * width)
    linear("single_blocks.0.linear1", 7 * width)
    linear("single_blocks.0.linear2", width)
    linear("final_layer.linear", 64)
    linear("final_layer.adaLN_modulation.1", 2 * width)
    heads = ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0")
    for head in heads:
        for norm in ("query", "key"):
            made = torch.randn(128, generator=generator)
            tensors[f"{head}.norm.{norm}_norm.scale"] = made.to(torch.bfloat16)
    file = read_single_file(saved(tmp_path / "wide.safetensors", prefixed(COMFY, tensors)))
    ours = dict(convert._tensors(file, file.parts["transformer"]))
    assert_same(ours, convert_flux_transformer_checkpoint_to_diffusers(dict(tensors)))
    made = file.sizes.config((16, 56, 56))
    assert (made["num_attention_heads"], made["attention_head_dim"]) == (24, 128)
    assert (made["num_layers"], made["num_single_layers"]) == (1, 1)


# -- float8 ----------------------------------------------------------------------------------------
def narrowed(tensors: Tensors, name: str, shape: tuple[int, ...], leaf: str) -> torch.Tensor:
    """Store a weight as e4m3 with a scale per tensor or row; returns what it stands for."""
    weight = tensors[name].float()
    most = weight.abs().amax(1, keepdim=True) if shape else weight.abs().amax()
    scale = (most / 448).float()
    tensors[name] = (weight / scale).to(E4M3)
    tensors[f"{name.removesuffix('weight')}{leaf}"] = scale.reshape(shape or ())
    return (tensors[name].float() * scale).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("leaf", "per_row"), [("scale_weight", False), ("weight_scale", True), ("weight_scale", False)]
)
def test_scales_are_applied_before_q_k_and_v_are_cut(
    tmp_path: Path, leaf: str, per_row: bool
) -> None:
    tensors = transformer()
    shape = (tensors[QKV].shape[0], 1) if per_row else ()
    qkv = narrowed(tensors, QKV, shape, leaf)
    linear1 = narrowed(tensors, LINEAR1, (), leaf)
    tensors["double_blocks.0.img_attn.qkv.scale_input"] = torch.ones(())
    tensors["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    found = stored(converted(tmp_path, prefixed(COMFY, tensors)))
    width = qkv.shape[1]
    for at, x in enumerate("qkv"):
        rows = slice(at * width, (at + 1) * width)
        assert torch.equal(found[f"transformer_blocks.0.attn.to_{x}.weight"], qkv[rows])
        one = found[f"single_transformer_blocks.1.attn.to_{x}.weight"]
        assert torch.equal(one, linear1[rows])
    assert torch.equal(found["single_transformer_blocks.1.proj_mlp.weight"], linear1[3 * width :])


def test_another_method_that_is_read_is_read_here_too(tmp_path: Path) -> None:
    """Whatever `quantised` reads: here int8 with a scale per row."""
    tensors = transformer()
    weight = tensors[QKV].float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    tensors[QKV] = (weight / scale).round().to(torch.int8)
    tensors[f"{QKV}_scale"] = scale
    wanted = (tensors[QKV].float() * scale).to(torch.bfloat16)
    found = stored(converted(tmp_path, tensors))
    v = found["transformer_blocks.0.attn.to_v.weight"]
    assert torch.equal(v, wanted[-len(v) :])


def test_plain_float8_is_the_numbers_it_holds(tmp_path: Path) -> None:
    tensors = transformer()
    narrow = {name: tensor.to(E4M3) for name, tensor in tensors.items() if tensor.ndim == 2}
    found = stored(converted(tmp_path, tensors | narrow))
    q = found["transformer_blocks.0.attn.to_q.weight"]
    assert torch.equal(q, narrow[QKV][: len(q)].to(torch.bfloat16))


def test_float8_that_lost_its_scale_is_refused(tmp_path: Path) -> None:
    tensors = transformer()
    narrowed(tensors, QKV, (), "scale_weight")
    tensors.pop("double_blocks.0.img_attn.qkv.scale_weight")
    assert f"{QKV} is float8 up to the largest number" in refusal(tmp_path, tensors)
    narrowed(tensors, LINEAR1, (), "scale_weight")
    assert f"has scales, but none for its float8 {QKV}" in refusal(tmp_path, tensors)


# -- refused by name -------------------------------------------------------------------------------
ONE = torch.ones(1)
OTHERS: dict[str, tuple[Tensors, str]] = {
    name: ({tensor: ONE}, said)
    for name, tensor, said in (
        ("FLUX.2", "double_stream_modulation_img.lin.weight", "a FLUX.2 transformer"),
        ("Chroma", "distilled_guidance_layer.in_proj.weight", "a Chroma transformer"),
        ("SD3", "model.diffusion_model.joint_blocks.0.x_block.a", "Stable Diffusion 3"),
        ("SDXL", "model.diffusion_model.input_blocks.0.0.weight", "SDXL UNet"),
        ("HunyuanVideo", "double_blocks.0.img_attn_qkv.weight", "HunyuanVideo"),
        ("Wan", "blocks.0.cross_attn.k.weight", "a Wan"),
        ("Z-Image", "cap_embedder.0.weight", "Z-Image"),
        ("ControlNet", "controlnet_blocks.0.weight", "a ControlNet"),
        ("T5", "encoder.block.0.layer.0.SelfAttention.k.weight", "a T5 text encoder"),
        ("CLIP", "text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP text encoder"),
        ("VAE", "decoder.up.0.block.0.conv1.weight", "an autoencoder"),
        ("LoRA", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "an adapter"),
        ("PEFT", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "an adapter"),
        ("diffusers", "transformer_blocks.0.attn.to_q.weight", "--component transformer"),
        ("another", "something.weight", "no FLUX.1 transformer: it has 1 tensors"),
    )
}


@pytest.mark.parametrize(("tensors", "said"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_kind_is_named(tmp_path: Path, tensors: Tensors, said: str) -> None:
    assert said in refusal(tmp_path, tensors)


def changed(name: str, tensor: torch.Tensor | None) -> Tensors:
    """The transformer with another tensor; None takes it away."""
    found: Tensors = transformer()
    found.pop(name, None)
    return found | ({} if tensor is None else {name: tensor})


LOST = "double_blocks.1.txt_mlp.2.bias"
NARROW_QKV = torch.ones(480, 160).to(E4M3)
BROKEN: dict[str, tuple[Callable[[], Tensors], str]] = {
    "channels": (lambda: changed("img_in.weight", torch.ones(160, 200)), "in_channels is 200"),
    "Depth": (lambda: changed("img_in.weight", torch.ones(160, 128)), "FLUX.1-Depth"),
    "a lost tensor": (lambda: changed(LOST, None), f"transformer has no tensor {LOST}"),
    "a stray tensor": (lambda: changed("x.weight", ONE), "no place in a FLUX.1 checkpoint"),
    "another part": (
        lambda: prefixed(COMFY, transformer()) | {"text_encoders.clip_g.transformer.x": ONE},
        "such as 'text_encoders.clip_g.transformer.x'",
    ),
    "rows": (lambda: changed(LINEAR1, torch.ones(7, 160)), "not 1120 rows"),
    "columns": (
        lambda: changed(LINEAR1, torch.ones(1120, 7)),
        "single_transformer_blocks.1.attn.to_q.weight has shape [160, 7]",
    ),
    "int8": (lambda: changed(QKV, NARROW_QKV.to(torch.int8)), "quantised (I8 numbers"),
    "blocks of scales": (
        lambda: changed(QKV, NARROW_QKV) | {f"{QKV}_scale": torch.ones(480, 5)},
        "its shape [480, 5] does not fit to a weight of [480, 160]",
    ),
    "half of nf4": (lambda: changed(f"{QKV}.absmax", ONE), "quantised (bitsandbytes 4-bit"),
    "svdquant": (lambda: changed(QKV.replace("weight", "qweight"), ONE), "is quantised"),
}


def test_a_fill_file_becomes_a_folder_of_its_kind(tmp_path: Path) -> None:
    tensors = changed("img_in.weight", torch.randn(160, 384).to(torch.bfloat16))
    source, target = tmp_path / "fill.safetensors", tmp_path / "fill"
    save_file(tensors, source)
    convert.convert_checkpoint(source, target, FLUX)
    made, _ = read_checkpoint(target)
    assert (made.kind, made.shape.in_channels, made.shape.out_channels) == ("fill", 384, 64)


@pytest.mark.parametrize(("tensors", "said"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cant_be_right_is_refused_by_name(
    tmp_path: Path, tensors: Callable[[], Tensors], said: str
) -> None:
    assert said in refusal(tmp_path, tensors())


def test_a_base_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    """Its noise schedule would be used."""
    base = variant(
        FLUX, tmp_path / "in" / "base", config("transformer/config.json", guidance_embeds=False)
    )
    message = refusal(tmp_path, transformer(), base)
    assert "is like FLUX.1-dev" in message
    assert "the base like FLUX.1-schnell" in message


def test_a_base_that_lacks_what_the_file_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    base = without_weights(FLUX, tmp_path / "in" / "base", "transformer", "text_encoder_2")
    assert "text_encoder_2 has no safetensors" in refusal(tmp_path, transformer(), base)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.gguf", b"GGUF\x03", "GGUF is not read"),
        ("a.safetensors", b"GGUF\x03", "GGUF is not read"),
        ("a.ckpt", b"PK\x03\x04", "pickled weights are not read"),
        ("a.safetensors", b"nothing", "is broken or cut short"),
        ("a.txt", b"nothing", "holds 0 safetensors files"),
    ],
)
def test_a_file_of_another_format_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ServingError) as failure:
        convert.convert_checkpoint(tmp_path, tmp_path / "made", FLUX)
    assert said in failure.value.message


def test_two_files_nothing_and_a_target_that_exists_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / "in" / f"{name}.safetensors", {"x": ONE})
    with pytest.raises(InvalidRequest, match=r"2 safetensors files.*'a.safetensors, b.saf"):
        convert.convert_checkpoint(tmp_path / "in", tmp_path / "made", FLUX)
    with pytest.raises(InvalidRequest, match="there is no file nowhere"):
        convert.convert_checkpoint(tmp_path / "nowhere", tmp_path / "made", FLUX)
    with pytest.raises(InvalidRequest, match="in exists already"):
        convert.convert_checkpoint(tmp_path / "in" / "a.safetensors", tmp_path / "in", FLUX)


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_tensors", full)
    with pytest.raises(EngineFailed, match="made can't be written: No space left"):
        converted(tmp_path, transformer())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
