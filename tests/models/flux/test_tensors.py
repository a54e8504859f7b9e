"""The tensors that are computed from configs are those of the libraries' own modules."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from predictors.compute.checkpoint.headers import Header
from predictors.diffusion.sampling import Schedule
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.modules.decoder import decoder_names
from predictors.models.flux.modules.encoder import encoder_names
from predictors.models.flux.modules.transformer import Transformer
from predictors.models.flux.summary import count_weights
from predictors.models.flux.tensors import (
    DEFAULTS,
    block_linears,
    tensors_of,
    with_defaults,
)
from predictors.models.flux.weights import conditioning_names, transformer_names
from tests.full_size import FLUX_DEV
from tests.variants import FLUX

SMALL = {part: json.loads((FLUX / part / "config.json").read_text()) for part in DEFAULTS}
CHECKPOINTS = {"embedded": SMALL, "FLUX.1-dev": FLUX_DEV}


def library_tensors(part: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the library's own module of a part."""
    values = {name: value for name, value in config.items() if name != "_class_name"}
    with torch.device("meta"):
        match part:
            case "transformer":
                module = FluxTransformer2DModel.from_config(values)
            case "vae":
                module = AutoencoderKL.from_config(values)
            case "text_encoder":
                module = CLIPTextModel(CLIPTextConfig(**values))
            case _:
                module = T5EncoderModel(T5Config(**values))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("part", DEFAULTS)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_tensors_of_a_part_are_those_of_the_librarys_module(checkpoint: str, part: str) -> None:
    config = CHECKPOINTS[checkpoint][part]
    theirs = library_tensors(part, config)
    stored = {name: Header("BF16", shape) for name, shape in theirs.items()}
    filled = with_defaults(part, config)
    assert tensors_of(part, filled, stored, encodes=True) == theirs
    if part == "vae":
        theirs = {n: s for n, s in theirs.items() if not n.startswith(("encoder.", "quant_conv."))}
    assert tensors_of(part, filled, stored) == theirs


def test_defaults_are_those_of_the_libraries() -> None:
    for part, kind in (("transformer", FluxTransformer2DModel), ("vae", AutoencoderKL)):
        parameters = inspect.signature(kind.__init__).parameters
        assert {name: parameters[name].default for name in DEFAULTS[part]} == DEFAULTS[part]
    for part, config in (("text_encoder", CLIPTextConfig()), ("text_encoder_2", T5Config())):
        assert {name: getattr(config, name) for name in DEFAULTS[part]} == DEFAULTS[part]
    assert Schedule.of({}) == Schedule.of(FlowMatchEulerDiscreteScheduler().config)


def test_loading_asks_for_the_same_tensors() -> None:
    config, _ = read_checkpoint(FLUX)
    asked = [*transformer_names(config.shape).values(), *conditioning_names(config.shape).values()]
    wanted = tensors_of("transformer", with_defaults("transformer", SMALL["transformer"]), {})
    assert {name for names in asked for name in names} == set(wanted)
    wanted = tensors_of("vae", with_defaults("vae", SMALL["vae"]), {})
    assert {n for names in decoder_names(config.decoder).values() for n in names} == set(wanted)
    assert config.encoder is not None
    both = tensors_of("vae", with_defaults("vae", SMALL["vae"]), {}, encodes=True)
    asked = [*encoder_names(config.encoder).values()]
    assert {n for names in asked for n in names} == set(both) - set(wanted)


def test_the_linears_that_fp8_tiers_quantise_are_counted() -> None:
    config, _ = read_checkpoint(FLUX)
    names = transformer_names(config.shape)
    with torch.device("meta"):
        module = Transformer(config.shape)
    linears = {
        name
        for path, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and not path.startswith("ends.")
        for name in names[f"{path}.weight"]
    }
    small = with_defaults("transformer", SMALL["transformer"])
    assert set(block_linears(small)) == linears


def test_the_weights_of_flux_dev_are_counted() -> None:
    configs = {part: with_defaults(part, config) for part, config in FLUX_DEV.items()}
    weights = count_weights(configs)
    # as the published checkpoint: 11.90 and 4.76 billion, 0.12 and the decoder's 0.05
    everything = weights.blocks.values + weights.conditioning.values + weights.others
    assert everything == 11_901_408_320 + 4_762_310_656 + 123_060_480 + 49_545_475
    assert weights.blocks.values == 8_606_711_808
    # 69 MB in bfloat16, as docs/configuration.md says
    assert count_weights(configs, encodes=True).others - weights.others == 34_274_208


def test_old_spellings_are_taken_from_what_is_stored(tmp_path: Path) -> None:
    clip = with_defaults("text_encoder", {"model_type": "clip", "text_config": {"hidden_size": 8}})
    assert clip["hidden_size"] == 8
    named = {"text_model.final_layer_norm.bias": Header("F32", (8,))}
    found = tensors_of("text_encoder", clip, named)
    assert found["text_model.final_layer_norm.bias"] == (8,)
    assert "final_layer_norm.bias" not in found
    small = with_defaults("vae", SMALL["vae"])
    old = "decoder.mid_block.attentions.0.{}.weight"
    stored = {old.format("proj_attn"): Header("F32", (64, 64, 1, 1))}
    assert tensors_of("vae", small, stored)[old.format("proj_attn")] == (64, 64, 1, 1)
    assert old.format("query") in tensors_of("vae", small, stored)
    stored = {name.replace("decoder", "encoder"): header for name, header in stored.items()}
    found = tensors_of("vae", small, stored, encodes=True)
    assert found[old.replace("decoder", "encoder").format("proj_attn")] == (64, 64, 1, 1)
    assert old.format("proj_attn") not in found
