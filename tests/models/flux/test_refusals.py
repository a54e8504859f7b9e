"""A folder that would be drawn wrong is refused at the start, by name and in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.compute.checkpoint.shards import Shards
from predictors.errors import EngineFailed, ServingError
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.quantize import quantize_checkpoint
from tests.diffusion.driver import open_driver
from tests.variants import (
    FLUX,
    Change,
    Refused,
    added,
    config,
    cut,
    dropped,
    layer_with_leaf,
    nested,
    plain_message,
    recast,
    scaled,
    scaled_layer,
    variant,
    weights,
    without,
    write,
)

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
T5 = "text_encoder_2/model.safetensors"
CLIP = "text_encoder/model.safetensors"
BLOCK = "transformer_blocks.0.attn.to_q"
LAYER = "encoder.block.0.layer.0.SelfAttention.k"
FC1 = "encoder.layers.0.mlp.fc1"
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
ONE = torch.ones(1)


def refusal(folder: Path) -> str:
    """The message of a start with `folder`; it must not get as far as weights."""
    with pytest.raises(ServingError) as failure:
        open_driver(folder)
    return plain_message(failure.value, folder)


# -- tensors: read from the headers when loading begins --------------------------------------------
QUANTISED: Refused = {
    **scaled_layer(T5, LAYER, "text_encoder_2"),
    **layer_with_leaf(TRANSFORMER, BLOCK, "transformer"),
    "transformer as ComfyUI scales it": (
        weights(TRANSFORMER, scaled(f"{BLOCK}.weight", torch.float8_e4m3fn, "scale_weight")),
        ("transformer is quantised", "ComfyUI", f"{BLOCK}.scale_weight", "unquantised"),
    ),
    "transformer in e4m3 and nothing beside": (
        weights(TRANSFORMER, recast(f"{BLOCK}.weight", torch.float8_e4m3fn)),
        ("transformer is quantised", "F8_E4M3", f"{BLOCK}.weight"),
    ),
    "transformer in e5m2": (
        weights(TRANSFORMER, recast(f"{BLOCK}.weight", torch.float8_e5m2)),
        ("transformer is quantised", "F8_E5M2", f"{BLOCK}.weight"),
    ),
    "CLIP with scales of a block": (
        weights(CLIP, added({f"{FC1}.weight_scale_inv": ONE})),
        ("text_encoder is quantised", "FP8 in blocks", f"{FC1}.weight_scale_inv"),
    ),
    "vae with bitsandbytes in 4 bits": (
        weights(VAE, added({"encoder.conv_in.weight.absmax": ONE})),
        ("vae is quantised", "bitsandbytes 4-bit", "encoder.conv_in.weight.absmax"),
    ),
}
for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool):
    QUANTISED[f"vae with a weight of {dtype}"] = (
        weights(VAE, recast("decoder.conv_in.weight", dtype)),
        ("vae is quantised", "decoder.conv_in.weight"),
    )


@pytest.mark.parametrize(("change", "said"), QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_are_refused_by_method_component_and_tensor(
    tmp_path: Path, change: Change, said: tuple[str, ...]
) -> None:
    message = refusal(variant(FLUX, tmp_path / "c", change))
    for words in said:
        assert words in message


STRAY: dict[str, tuple[Change, str]] = {
    f"{part} with {name}": (weights(file, added({name: ONE})), f"{part} holds .*{name}")
    for part, file, name in (
        ("transformer", TRANSFORMER, f"{BLOCK}.lora_A.weight"),
        ("transformer", TRANSFORMER, f"{BLOCK}.lora_A.default.weight"),
        ("transformer", TRANSFORMER, "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"),
        ("transformer", TRANSFORMER, "lora_unet_double_blocks_0_img_attn_qkv.alpha"),
        ("transformer", TRANSFORMER, "controlnet_x_embedder.weight"),
        ("transformer", TRANSFORMER, "transformer_blocks.7.attn.to_q.weight"),
        ("text_encoder", CLIP, f"text_model.{FC1}.lora_B.weight"),
        ("text_encoder_2", T5, f"{LAYER}.lora_up.weight"),
        ("text_encoder_2", T5, "encoder.block.9.layer.0.SelfAttention.k.weight"),
        ("vae", VAE, "post_quant_conv.weight"),
        ("vae", VAE, "encoder.conv_in.lora_A.weight"),
    )
}


@pytest.mark.parametrize(("change", "said"), STRAY.values(), ids=STRAY)
def test_a_tensor_without_a_place_is_named(tmp_path: Path, change: Change, said: str) -> None:
    assert re.search(said, refusal(variant(FLUX, tmp_path / "c", change)))


HARMLESS = {
    CLIP: ("embeddings.position_ids", "text_projection.weight", "logit_scale", "vision_model.x"),
    T5: ("decoder.block.0.layer.0.SelfAttention.k.weight", "lm_head.weight"),
    VAE: ("quant_conv.weight", "encoder.more.weight"),
}


@pytest.mark.parametrize("file", HARMLESS)
def test_known_unused_tensors_are_accepted(tmp_path: Path, file: str) -> None:
    change = weights(file, added({name: torch.tensor([1]) for name in HARMLESS[file]}))
    open_driver(variant(FLUX, tmp_path / "c", change), edits="off")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (added({"encoder.more.weight": ONE}), "vae holds .*encoder.more.weight"),
        (added({"quant_conv.weight": ONE}), "vae holds .*quant_conv.weight"),
        (dropped("encoder.conv_out.bias"), "vae has no tensor encoder.conv_out.bias"),
        (
            lambda tensors: tensors.update({"encoder.conv_norm_out.bias": ONE}),
            "encoder.conv_norm_out.bias",
        ),
    ],
)
def test_the_tensors_of_an_encoder_that_is_loaded_are_accounted_for(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    folder = variant(FLUX, tmp_path / "c", weights(VAE, change))
    assert re.search(said, refusal(folder))
    open_driver(folder, edits="off")


def test_both_names_of_t5s_embedding_may_be_stored(tmp_path: Path) -> None:
    def both(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()

    open_driver(variant(FLUX, tmp_path / "c", weights(T5, both)))


@pytest.mark.parametrize(
    "file", ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
)
@pytest.mark.parametrize("part", ["", "transformer/"])
def test_an_adapter_inside_the_folder_is_named(tmp_path: Path, file: str, part: str) -> None:
    message = refusal(variant(FLUX, tmp_path / "c", write(part + file, "{}")))
    assert f"holds an adapter ({file})" in message
    assert "merge it" in message


# -- our own fp8 -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("narrow") / "fp8"
    quantize_checkpoint(FLUX, target)
    return target


def test_our_own_fp8_is_served_with_all_its_scales(narrow: Path, tmp_path: Path) -> None:
    with Shards(narrow / "transformer") as stored:
        scales = [name for name in stored if name.endswith("_scale")]
    open_driver(narrow, tiers="high")
    for name in (scales[0], scales[-1]):
        lost = weights(TRANSFORMER, dropped(name))
        folder = variant(narrow, tmp_path / name, lost)
        with pytest.raises(EngineFailed, match=f"transformer has no tensor {name}"):
            open_driver(folder, tiers="high")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (weights(TRANSFORMER, recast(f"{BLOCK}.weight", torch.bfloat16)), f"{BLOCK}.weight_scale"),
        (weights(TRANSFORMER, recast(f"{BLOCK}.weight", torch.int8)), f"{BLOCK}.weight_scale"),
        (weights(TRANSFORMER, added({f"{BLOCK}.input_scale": ONE})), f"{BLOCK}.input_scale"),
        (weights(TRANSFORMER, added({"x_embedder.weight_scale": ONE})), "x_embedder.weight_scale"),
        (
            nested(
                "transformer/config.json",
                "quantization_config",
                config_groups={"group_0": {"weights": {"strategy": "tensor"}}},
            ),
            "no such weights",
        ),
        (
            nested("transformer/config.json", "quantization_config", format="mxfp8-quantized"),
            "compressed-tensors MXFP8",
        ),
    ],
)
def test_fp8_of_another_layout_is_refused(
    narrow: Path, tmp_path: Path, change: Change, said: str
) -> None:
    with pytest.raises(EngineFailed, match=said):
        open_driver(variant(narrow, tmp_path / "c", change), tiers="high")


# -- configs: read before anything listens ---------------------------------------------------------
def said_by_configs(folder: Path) -> str:
    with pytest.raises(ServingError) as failure:
        read_checkpoint(folder)
    return plain_message(failure.value, folder)


CONFIGS = {
    "transformer": "transformer/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "vae": "vae/config.json",
}
METHODS: dict[str, tuple[Any, str]] = {
    "sparse": ({**COMPRESSED, "format": "marlin-24"}, "compressed-tensors sparse Marlin 2:4"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ 4-bit"),
    "torchao": ({"quant_method": "torchao"}, "torchao"),
    "quanto": ({"quant_method": "quanto"}, "quanto"),
    "a word": ("nf4", "an unknown method, 'nf4'"),
}


@pytest.mark.parametrize("part", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_quantisation_that_a_config_names_is_refused(
    tmp_path: Path, part: str, method: str
) -> None:
    value, name = METHODS[method]
    change = config(CONFIGS[part], quantization_config=value)
    message = said_by_configs(variant(FLUX, tmp_path / "c", change))
    assert f"{part} is quantised ({name}" in message
    assert "unquantised folder" in message


def test_a_quantisation_is_found_under_other_keys_and_files_with_a_tensor(tmp_path: Path) -> None:
    for i, change in enumerate(
        (
            config("vae/config.json", compression_config={"quant_method": "eetq"}),
            config("text_encoder/config.json", text_config={"quantization_config": {"bits": 4}}),
            config("model_index.json", quantization_config={"quant_method": "awq"}),
            write("text_encoder_2/quantize_config.json", '{"bits": 3, "quant_method": "gptq"}'),
        )
    ):
        assert "quanti" in said_by_configs(variant(FLUX, tmp_path / str(i), change))
    tensor = weights(T5, added({f"{LAYER}.SCB": ONE}))
    named = config("text_encoder_2/config.json", quantization_config={"quant_method": "eetq"})
    assert f"tensor {LAYER}.SCB" in said_by_configs(variant(FLUX, tmp_path / "c", tensor, named))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("x", "model_index.json: vae is 'x', not a library and a class of it"),
        (["AutoencoderKL"], "vae is ['AutoencoderKL'], not a library and a class"),
        (["own_module", "AutoencoderKL"], "is a 'AutoencoderKL' of 'own_module', says"),
    ],
)
def test_a_part_that_is_no_class_of_a_known_library_is_refused(
    tmp_path: Path, named: object, said: str
) -> None:
    folder = variant(FLUX, tmp_path / "c", config("model_index.json", vae=named))
    assert said in said_by_configs(folder)


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    "name",
    [
        "FlowMatchLCMScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
    ],
)
@pytest.mark.parametrize("place", ["scheduler", "index"])
def test_a_scheduler_of_another_class_is_refused_by_its_name(
    tmp_path: Path, name: str, place: str
) -> None:
    changes = {
        "scheduler": config(SCHEDULER, _class_name=name),
        "index": config("model_index.json", scheduler=["diffusers", name]),
    }
    assert name in said_by_configs(variant(FLUX, tmp_path / "c", changes[place]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_karras_sigmas": True}, "sets use_karras_sigmas"),
        ({"use_exponential_sigmas": True}, "sets use_exponential_sigmas"),
        ({"use_beta_sigmas": True}, "sets use_beta_sigmas"),
        ({"use_flow_sigmas": True}, "sets use_flow_sigmas"),
        ({"_class_name": None}, "is of a None; served is FlowMatchEuler"),
        ({"stochastic_sampling": True}, "sets stochastic_sampling"),
        ({"invert_sigmas": True}, "sets invert_sigmas"),
        ({"time_shift_type": "cosine"}, "time_shift_type is 'cosine'"),
        ({"shift": "a"}, "shift is 'a'"),
        ({"shift": None}, "shift is None"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None"),
        ({"shift": 0}, "shift must be above 0"),
        ({"base_shift": float("nan")}, "base_shift is nan"),
        ({"shift_terminal": 1.0}, "shift_terminal below 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": "x"}, "num_train_timesteps is 'x'"),
        ({"base_image_seq_len": 4096}, "are both 4096"),
    ],
)
def test_an_unserved_option_of_the_scheduler_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    message = said_by_configs(variant(FLUX, tmp_path / "c", config(SCHEDULER, **values)))
    assert said in message
    assert message.startswith("scheduler/scheduler_config.json")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae is a 'AutoencoderTiny'"),
        ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "'SD3Transformer2DModel'"),
        ({"text_encoder_2": ["transformers", "UMT5EncoderModel"]}, "'UMT5EncoderModel'"),
        ({"text_encoder_2": [None, None]}, "text_encoder_2 is a None"),
        ({"text_encoder_2": ...}, "names no text_encoder_2"),
        ({"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "'image_encoder'"),
        ({"controlnet": ["diffusers", "FluxControlNetModel"]}, "'controlnet'"),
    ],
)
def test_a_part_of_another_class_is_refused_by_its_name(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    assert said in said_by_configs(
        variant(FLUX, tmp_path / "c", config("model_index.json", **values))
    )


BROKEN: dict[str, tuple[Change, str]] = {
    **{
        f"no {part}": (without(part), f"the folder {part} is missing")
        for part in ("tokenizer", "tokenizer_2", "scheduler", "vae", "text_encoder_2")
    },
    **{
        f"{file} cut short": (cut(file), f"{file} is no JSON, or cut short")
        for file in (
            "tokenizer/tokenizer.json",
            "tokenizer_2/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "transformer/config.json",
            SCHEDULER,
        )
    },
    "no transformer": (without("transformer"), "transformer/config.json is missing"),
    "no config": (without("vae/config.json"), "vae/config.json is missing"),
    "a list": (write("vae/config.json", "[]"), "vae/config.json holds a list"),
    "no encoding": (write("vae/config.json", b"\xff\xfe{"), "vae/config.json is no JSON"),
    "deep": (write("vae/config.json", "[" * 100_000), "vae/config.json is no JSON"),
    "no vocabulary": (
        without("tokenizer/tokenizer.json", "tokenizer/vocab.json"),
        "tokenizer has no tokenizer.json and no vocab.json and merges.txt",
    ),
    "no pieces": (without("tokenizer_2/tokenizer.json"), "no tokenizer.json and no spiece.model"),
    "an empty tokenizer": (write("tokenizer/tokenizer.json", "{}"), "the tokenizer in tokenizer"),
    "no length": (
        config("tokenizer/tokenizer_config.json", model_max_length=...),
        "tokenizer/tokenizer_config.json: model_max_length is missing",
    ),
    "too long": (
        config("tokenizer/tokenizer_config.json", model_max_length=78),
        "model_max_length is missing or more than the 77 positions",
    ),
    "another end": (config("text_encoder/config.json", eos_token_id=5), "eos_token_id is 5"),
    "few tokens": (
        config("text_encoder_2/config.json", vocab_size=100),
        "tokenizer_2 has a token",
    ),
    "layers x": (config("transformer/config.json", num_layers="x"), "num_layers is 'x'"),
    "layers -1": (config("transformer/config.json", num_layers=-1), "num_layers is -1"),
    "layers 1e9": (config("transformer/config.json", num_layers=10**9), "num_layers is 1000000000"),
    "layers true": (config("transformer/config.json", num_layers=True), "num_layers is True"),
    "T5 layers": (config("text_encoder_2/config.json", num_layers=10**9), "num_layers is 10"),
    "huge": (config("text_encoder/config.json", hidden_size=2**40), "hidden_size is 1099511627776"),
    "channels": (config("transformer/config.json", in_channels=384), "in_channels is 384"),
    "text": (config("text_encoder_2/config.json", d_model=64), "joint_attention_dim is 128"),
    "pooled": (config("text_encoder/config.json", hidden_size=32), "pooled_projection_dim is 64"),
    "axes": (config("transformer/config.json", axes_dims_rope=[8, 8, 8]), "axes_dims_rope"),
    "axes text": (config("transformer/config.json", axes_dims_rope="x"), "axes_dims_rope"),
    "no blocks": (config("vae/config.json", block_out_channels=...), "block_out_channels is None"),
    "block x": (config("vae/config.json", block_out_channels=["x"]), "block_out_channels is 'x'"),
    "groups": (config("vae/config.json", norm_num_groups=7), "norm_num_groups 7"),
    "scaling": (config("vae/config.json", scaling_factor="x"), "scaling_factor is 'x'"),
    "scaling 0": (config("vae/config.json", scaling_factor=0), "scaling_factor is 0"),
    "another T5": (config("text_encoder_2/config.json", model_type="umt5"), "'umt5'"),
    "another vae": (config("vae/config.json", _class_name="AutoencoderTiny"), "'AutoencoderTiny'"),
    "another act": (config("vae/config.json", act_fn="relu"), "act_fn is relu"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_sentence_that_names_the_file(
    tmp_path: Path, change: Change, said: str
) -> None:
    assert said in said_by_configs(variant(FLUX, tmp_path / "c", change))


def test_the_end_token_of_old_configs_is_the_largest_id(tmp_path: Path) -> None:
    read_checkpoint(
        variant(FLUX, tmp_path / "c", config("text_encoder/config.json", eos_token_id=2))
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("text_encoder/config.json", "layer_norm_eps"),
        ("text_encoder/config.json", "projection_dim"),
        ("text_encoder_2/config.json", "layer_norm_epsilon"),
        ("text_encoder_2/config.json", "relative_attention_max_distance"),
        (SCHEDULER, "use_dynamic_shifting"),
    ],
)
def test_a_number_or_flag_in_words_is_named(tmp_path: Path, file: str, name: str) -> None:
    folder = variant(FLUX, tmp_path / "c", config(file, **{name: "false"}))
    assert f"{file}: {name} is 'false', a text" in said_by_configs(folder)


def test_a_length_of_the_tokenizer_in_words_is_named(tmp_path: Path) -> None:
    for part in ("tokenizer", "tokenizer_2"):
        change = config(f"{part}/tokenizer_config.json", model_max_length="x")
        folder = variant(FLUX, tmp_path / part, change)
        assert f"{part}/tokenizer_config.json: model_max_length" in said_by_configs(folder)
