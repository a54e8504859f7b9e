"""A checkpoint that would be answered wrong is refused at the start, by name, in one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from predictors.chat.detokenize import Vocabulary
from predictors.chat.folder import read_config
from predictors.chat.template_checks import check_spelling
from predictors.chat.token_files import end_tokens, read_tokens
from predictors.compute.device.placement import place
from predictors.errors import EngineFailed, ServingError
from predictors.models.qwen2_5_vl.model import Qwen25VLModel, make_predictor
from predictors.settings import ComputeSettings, QwenVLSettings, Settings
from tests.chat.room import Room, chat
from tests.variants import (
    QWEN,
    Change,
    Refused,
    Tensors,
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

WEIGHTS = "model.safetensors"
MLP = "model.layers.0.mlp.up_proj"
VISION = "visual.blocks.0.mlp.up_proj"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SETTINGS = Settings(
    compute=ComputeSettings(device="cpu"), qwen_vl=QwenVLSettings(slots=1, max_context=128)
)
ONE = torch.ones(1)


def refusal(folder: Path) -> str:
    """The message while the predictor is made, before any weight is read."""
    with pytest.raises(ServingError) as failure:
        make_predictor("qwen-vl", folder, SETTINGS).stop()
    return plain_message(failure.value, folder)


def refusal_of_weights(folder: Path) -> str:
    """The message when loading begins."""
    model, placement = Qwen25VLModel(folder), place(SETTINGS.compute)
    with pytest.raises(EngineFailed) as failure:
        model.load(placement)
    return plain_message(failure.value, folder)


# -- tensors: read from the headers when loading begins --------------------------------------------
QUANTISED: Refused = {
    **scaled_layer(WEIGHTS, MLP, "the language model"),
    **layer_with_leaf(WEIGHTS, MLP, "the language model"),
    "a vision tower in float8": (
        weights(WEIGHTS, scaled(f"{VISION}.weight", torch.float8_e4m3fn, "weight_scale_inv")),
        ("the vision tower is quantised", "FP8 in blocks", f"{VISION}.weight_scale_inv"),
    ),
}
for dtype in (torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn):
    QUANTISED[f"a weight of {dtype}"] = (
        weights(WEIGHTS, recast("model.norm.weight", dtype)),
        ("the language model is quantised", "model.norm.weight"),
    )


def packed(*leaves: str) -> Change:
    """Every linear of the blocks as AWQ or GPTQ stores it: no weight, but these."""

    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers") and n.endswith("j.weight")]:
            tensors.pop(name)
            stem = name.removesuffix("weight")
            tensors |= {stem + leaf: torch.ones(2, dtype=torch.int32) for leaf in leaves}

    return weights(WEIGHTS, edit)


QUANTISED["AWQ"] = (
    packed("qweight", "qzeros", "scales"),
    ("quantised (AWQ", "down_proj.scales", "unquantised"),
)
QUANTISED["GPTQ"] = (
    packed("qweight", "qzeros", "scales", "g_idx"),
    ("quantised (GPTQ", "down_proj.scales", "unquantised"),
)


@pytest.mark.parametrize(("change", "said"), QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_are_refused_by_method_component_and_tensor(
    tmp_path: Path, change: Change, said: tuple[str, ...]
) -> None:
    message = refusal_of_weights(variant(QWEN, tmp_path / "c", change))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{MLP}.lora_A.weight", "adapter"),
        (f"base_model.model.{MLP}.lora_B.default.weight", "adapter"),
        (f"{MLP}.lora_magnitude_vector", "adapter"),
        ("model.layers.7.mlp.up_proj.weight", "no place in this model"),
        ("visual.blocks.0.mlp.fc1.weight", "no place in this model"),
        ("something.else", "no place in this model"),
    ],
)
def test_a_tensor_without_a_place_is_named(tmp_path: Path, name: str, said: str) -> None:
    folder = variant(QWEN, tmp_path / "c", weights(WEIGHTS, added({name: ONE})))
    message = refusal_of_weights(folder)
    assert said in message
    assert name in message


def test_tensors_known_to_be_unused_are_ignored(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "visual.rotary_pos_emb.inv_freq")
    stray = added({name: torch.ones(1) for name in names})
    Room.open(variant(QWEN, tmp_path / "c", weights(WEIGHTS, stray)), slots=1)


def test_a_config_of_other_sizes_takes_no_memory_before_it_is_found_out(tmp_path: Path) -> None:
    huge = nested("config.json", "text_config", intermediate_size=2**20)
    assert "has shape" in refusal_of_weights(variant(QWEN, tmp_path / "wide", huge))
    deep = nested("config.json", "text_config", num_hidden_layers=1000, layer_types=None)
    assert "lacks 11964 weights" in refusal_of_weights(variant(QWEN, tmp_path / "deep", deep))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_inside_the_folder_is_named(tmp_path: Path, file: str) -> None:
    assert f"holds an adapter ({file})" in refusal(variant(QWEN, tmp_path / "c", write(file, "{}")))


# -- a head beside the embedding -------------------------------------------------------------------
def test_a_head_that_differs_from_the_embedding_is_used_although_they_are_said_to_be_tied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def other(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING].flip(0)

    folder = variant(QWEN, tmp_path / "c", weights(WEIGHTS, other))
    untied = variant(
        folder,
        tmp_path / "untied",
        config("config.json", tie_word_embeddings=False),
        nested("config.json", "text_config", tie_word_embeddings=False),
    )
    with caplog.at_level(logging.WARNING):
        room = Room.open(folder, slots=1)
    assert "lm_head.weight differs from the embedding" in caplog.text
    stored = load_file(folder / WEIGHTS)
    assert torch.equal(room.runner._decoder.head.weight, stored[HEAD].float())
    assert room.answer(chat("hi")) == Room.open(untied, slots=1).answer(chat("hi"))
    assert room.answer(chat("hi")) != Room.open(slots=1).answer(chat("hi"))


def test_a_head_that_equals_the_embedding_stays_tied_and_logs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def same(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()

    with caplog.at_level(logging.WARNING):
        room = Room.open(variant(QWEN, tmp_path / "c", weights(WEIGHTS, same)), slots=1)
    decoder = room.runner._decoder
    assert decoder.head.weight.data_ptr() == decoder.embedding.weight.data_ptr()
    assert caplog.text == ""


# -- configs, tokens, template: read before anything listens ---------------------------------------
TOKENS = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "nvfp4": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        "compressed-tensors NVFP4",
    ),
    "gptq": ({"quant_method": "gptq", "bits": 3}, "GPTQ 3-bit"),
    "modelopt": ({"quant_method": "modelopt"}, "ModelOpt"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("level", ["", "text_config", "vision_config"])
def test_a_quantisation_that_the_config_names_is_refused(
    tmp_path: Path, method: str, key: str, level: str
) -> None:
    value, name = METHODS[method]
    change = config("config.json", **{key: value})
    if level:
        change = nested("config.json", level, **{key: value})
    tensor = weights(WEIGHTS, added({f"{MLP}.weight_scale": ONE}))
    message = refusal(variant(QWEN, tmp_path / "c", change, tensor))
    part = "vision tower" if level == "vision_config" else "language model"
    assert f"the {part} is quantised ({name}" in message
    assert f"tensor {MLP}.weight_scale" in message


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_a_quantisation_that_a_file_names_is_refused(tmp_path: Path, file: str) -> None:
    change = write(file, '{"quant_method": "gptq", "bits": 2}')
    assert "GPTQ 2-bit" in refusal(variant(QWEN, tmp_path / "c", change))


def template(text: str) -> tuple[Change, ...]:
    """The only chat template of the folder."""
    return (
        config(SETTINGS_FILE, chat_template=...),
        without("chat_template.json"),
        write("chat_template.jinja", text),
    )


OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|image_pad|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}"
)
TEMPLATES = {
    "text only": (TURN + "{{ '' + m.content }}<|im_end|>{% endfor %}" + OPEN, "not take a picture"),
    "prints lists": (TURN + "{{ m.content }}<|im_end|>{% endfor %}" + OPEN, "0 image tokens"),
    "two per picture": (
        TURN + PARTS.replace("<|image_pad|>", "<|image_pad|>" * 2) + "{% endfor %}" + OPEN,
        "2 image tokens of a picture",
    ),
    "loses the system": (
        TURN + "{% if m.role != 'system' %}" + PARTS + "{% endif %}{% endfor %}" + OPEN,
        "loses text of a history",
    ),
    "no opening": (TURN + PARTS + "<|im_end|>{% endfor %}", "does not open an answer"),
    "only one turn": (
        "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}"
        + TURN + PARTS + "{% endfor %}" + OPEN,
        "not take a history",
    ),
    "no template": ("{% for %}", "not take a turn of text"),
    "empty": ("", "no chat template"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_loses_messages_is_refused(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(variant(QWEN, tmp_path / "c", *template(text)))
    assert "chat template" in message
    assert said in message


def test_a_template_that_can_is_taken_from_any_file(tmp_path: Path) -> None:
    good = TURN + PARTS + "<|im_end|>{% endfor %}" + OPEN
    make_predictor("q", variant(QWEN, tmp_path / "c", *template(good)), SETTINGS).stop()


def more_tokens(token: str, number: int) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / TOKENS).read_text())
        found["added_tokens"].append({**found["added_tokens"][-1], "id": number, "content": token})
        write(TOKENS, json.dumps(found))(folder)

    return change


def fewer_tokens(token: str) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / TOKENS).read_text())
        kept = [t for t in found["added_tokens"] if t["content"] != token]
        write(TOKENS, json.dumps(found | {"added_tokens": kept}))(folder)

    return change


TEXT, TOWER = "text_config", "vision_config"
GENERATION, PREPROCESSOR = "generation_config.json", "preprocessor_config.json"


def of(part: str, **values: Any) -> Change:
    return nested("config.json", part, **values)


BROKEN: dict[str, tuple[tuple[Change, ...], str]] = {
    "no tokenizer": (
        (without(TOKENS, SETTINGS_FILE, "vocab.json", "merges.txt"),),
        "no tokenizer: tokenizer.json, or vocab.json and merges.txt",
    ),
    "merges only": ((without(TOKENS, "vocab.json"),), "no tokenizer"),
    "an empty tokenizer": ((write(TOKENS, "{}"),), "0 tokens"),
    "tokens of another form": ((write(TOKENS, '{"added_tokens": [1]}'),), "an unknown form"),
    "no template": (
        (config(SETTINGS_FILE, chat_template=...), without("chat_template.json")),
        "no chat template",
    ),
    "a token beyond": ((more_tokens("<|new|>", 832),), "'<|new|>' with id 832; the model has 832"),
    "a beyond in settings": (
        (config(SETTINGS_FILE, added_tokens_decoder={"999": {"content": "<x>"}}),),
        "'<x>' with id 999",
    ),
    "settings that drop all": (
        (config(SETTINGS_FILE, added_tokens_decoder={}),),
        "reads <|im_start|> as 10 tokens",
    ),
    "few embeddings": ((of(TEXT, vocab_size=500),), "the model has 500"),
    "no picture's token": ((fewer_tokens("<|image_pad|>"),), "reads <|image_pad|> as"),
    "another's token": ((config("config.json", image_token_id=813),), "image_token_id is 813"),
    "no vision start": ((fewer_tokens("<|vision_start|>"),), "reads <|vision_start|> as"),
    "an end that is none": (
        (of(TEXT, eos_token_id=831),), "eos_token_id 831 is no token",
    ),
    "an end in words": ((config(GENERATION, eos_token_id="x"),), "eos_token_id is 'x'"),
    "another preprocessor": (
        (config(PREPROCESSOR, image_processor_type="LlavaImageProcessor"),),
        "image_processor_type is 'LlavaImageProcessor'; served is Qwen2VLImageProcessor",
    ),
    "another processor": (
        (config(PREPROCESSOR, processor_class="Idefics3Processor"),),
        "processor_class is 'Idefics3Processor'; served are Qwen2VLProcessor",
    ),
    "other patches": ((config(PREPROCESSOR, patch_size=16),), "patch_size is 16"),
    "no spread": (
        (config(PREPROCESSOR, image_std=[0.2, 0, 0.2]),),
        "image_std holds 0",
    ),
    "no resizing": ((config(PREPROCESSOR, do_resize=False),), "do_resize is False; served is True"),
    "no pixels": ((config(PREPROCESSOR, max_pixels=0),), "max_pixels is 0, which is no area"),
    "an area in words": (
        (config(PREPROCESSOR, size={"shortest_edge": "x"}, min_pixels=None),),
        "min_pixels is 'x', which is no area",
    ),
    "pixels upside down": (
        (config(PREPROCESSOR, min_pixels=5000, max_pixels=4000),),
        "min_pixels 5000 is above max_pixels 4000",
    ),
    "two levels": ((config(PREPROCESSOR, image_mean=[0.5, 0.5]),), "image_mean is [0.5, 0.5]"),
    "a resize of null": ((config(PREPROCESSOR, do_resize=None),), "do_resize is None; served is"),
    "Hamming": ((config(PREPROCESSOR, resample=5),), "resample is 5; served is 0 or 1 or 2 or 3"),
    "resampling in words": ((config(PREPROCESSOR, resample="cubic"),), "resample is 'cubic'"),
    "levels in words": ((config(PREPROCESSOR, rescale_factor="1/255"),), "rescale_factor is '1/2"),
    "no levels": ((config(PREPROCESSOR, rescale_factor=0),), "rescale_factor is 0, not a number"),
    "a flag in words": ((config(PREPROCESSOR, do_normalize="false"),), "do_normalize is 'false'"),
    "a card": ((config(PREPROCESSOR, device="cuda"),), "device is 'cuda'; served is None or"),
    "channels last": (
        (config(PREPROCESSOR, input_data_format="channels_last"),),
        "input_data_format is 'channels_last'",
    ),
    "a fixed size": (
        (config(PREPROCESSOR, size={"height": 224}, min_pixels=None, max_pixels=None),),
        "size is {'height': 224}, without shortest_edge",
    ),
    "a size that is a number": (
        (config(PREPROCESSOR, size=224, min_pixels=None, max_pixels=None),),
        "size is 224, without shortest_edge",
    ),
    "tied in words": ((config("config.json", tie_word_embeddings="true"),), "not true or false"),
    "an epsilon in words": ((of(TEXT, rms_norm_eps="1e-6"),), "rms_norm_eps is '1e-6', a text"),
    "dropout in words": ((of(TEXT, attention_dropout="x"),), "attention_dropout is 'x', a text"),
    "a cache in words": ((of(TEXT, use_cache="x"),), "use_cache is 'x', a text"),
    "blocks in words": ((of(TOWER, fullatt_block_indexes="1"),), "indexes is '1', a text"),
    "LongRoPE": (
        (of(TEXT, rope_parameters={"rope_type": "longrope", "mrope_section": [4, 6, 6]}),),
        "rope_type must be one of default",
    ),
    "YaRN without a factor": (
        (of(TEXT, rope_parameters={"rope_type": "yarn", "mrope_section": [4, 6, 6]}),),
        "the factor of a rope_type must be 1 or more",
    ),
    "wide heads": ((of(TEXT, head_dim=64),), "head_dim must be hidden_size / num_attention_heads"),
    "Llama's tokenizer": (
        (config(SETTINGS_FILE, tokenizer_class="LlamaTokenizer"),),
        "tokenizer_class is 'LlamaTokenizer', not Qwen's",
    ),
    "a space in front": (
        (config(SETTINGS_FILE, add_prefix_space=True),),
        "sets add_prefix_space, which is not served",
    ),
    "tokens as text": (
        (config(SETTINGS_FILE, split_special_tokens=True),),
        "sets split_special_tokens, which is not served",
    ),
    "sampling in words": ((config(GENERATION, do_sample="false"),), "do_sample is 'false', not"),
    "half a token": ((config(GENERATION, top_k=0.5),), "top_k is 0.5, not a whole number"),
    **{
        f"decoding with {name}": (
            (config(GENERATION, **{name: value}),),
            f"generation_config.json sets {name} to",
        )
        for name, value in {
            "num_beams": 4, "no_repeat_ngram_size": 3, "min_new_tokens": 20, "top_h": 0.1,
            "forced_eos_token_id": 802, "bad_words_ids": [[5]], "suppress_tokens": [5],
            "stop_strings": ["a"], "typical_p": 0.5, "sequence_bias": [[[5], -10.0]],
        }.items()
    },
    "penalty 0": ((config(GENERATION, repetition_penalty=0),), "repetition_penalty is 0"),
    "min_p 2": ((config(GENERATION, min_p=2),), "min_p is 2"),
    "a hot config": ((config(GENERATION, temperature="hot"),), "temperature is 'hot'"),
    "top_p 2": ((config(GENERATION, top_p=2),), "top_p is 2"),
    "no config": ((write("config.json", "{}"),), "not a qwen2_5_vl"),
    "a list": ((write("config.json", "[]"),), "config.json holds a list"),
    "text of another type": ((config("config.json", text_config=[]),), "text_config is []"),
    "a broken generation": ((write(GENERATION, "{"),), "generation_config.json is no"),
    "layers": ((of(TEXT, num_hidden_layers=-1),), "num_hidden_layers is -1"),
    "many layers": (
        (of(TEXT, num_hidden_layers=10**9, layer_types=None),),
        "num_hidden_layers is 1000000000",
    ),
    "heads": ((of(TEXT, num_attention_heads=5),), "num_attention_heads"),
    "no heads": ((of(TEXT, num_attention_heads=0),), "heads is 0"),
    "kv heads": ((of(TEXT, num_key_value_heads=3),), "multiple of num_key"),
    "hidden x": ((of(TEXT, hidden_size="x"),), "hidden_size is 'x'"),
    "vision heads": ((of(TOWER, num_heads=7),), "multiple of num_heads"),
    "vision out": ((of(TOWER, out_hidden_size=64),), "out_hidden_size"),
    "activation": ((of(TEXT, hidden_act="gelu"),), "must be silu"),
    **{
        f"{file} cut short": ((cut(file, 30),), f"{file} is no JSON, or cut short")
        for file in (
            TOKENS, SETTINGS_FILE, "config.json", GENERATION, PREPROCESSOR,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_sentence_that_names_the_file(
    tmp_path: Path, changes: tuple[Change, ...], said: str
) -> None:
    assert said in refusal(variant(QWEN, tmp_path / "c", *changes))


def test_a_tokenizer_that_spells_in_another_alphabet_is_refused(room: Room) -> None:
    tokenizer = room.model.tokenizer
    check_spelling(Vocabulary(tokenizer).bytes_of, tokenizer)
    with pytest.raises(EngineFailed, match="no byte-level BPE"):
        check_spelling(lambda token: tokenizer.id_to_token(token).encode(), tokenizer)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    folder = variant(QWEN, tmp_path / "c", weights(WEIGHTS, dropped("visual.merger.mlp.0.bias")))
    assert "lacks 1 weights, such as visual.merger.mlp.0.bias" in refusal_of_weights(folder)


# -- end tokens ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        (config("generation_config.json", eos_token_id=800),),
        (config("generation_config.json", eos_token_id=[800]),),
        (nested("config.json", "text_config", eos_token_id=800),),
        (
            config("generation_config.json", eos_token_id=800),
            nested("config.json", "text_config", eos_token_id=None),
        ),
        (
            config("generation_config.json", eos_token_id=800),
            nested("config.json", "text_config", eos_token_id=800),
            config(SETTINGS_FILE, eos_token={"content": "<|im_end|>", "special": True}),
        ),
        (
            config("generation_config.json", eos_token_id=802),
            config(SETTINGS_FILE, eos_token="<|endoftext|>"),
        ),
    ],
)
def test_an_answer_ends_at_every_end_token_wherever_it_is_named(
    tmp_path: Path, changes: tuple[Change, ...]
) -> None:
    folder = variant(QWEN, tmp_path / "c", *changes)
    found = end_tokens(folder, read_config(folder, "qwen2_5_vl"), read_tokens(folder))
    assert found == {800, 802}
