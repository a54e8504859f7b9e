"""The exported tokenizers accept any text, and both checkpoints load in diffusers and
transformers."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from checkpoints.training import chat, encoders, flux_forward, parts, train_flux
from checkpoints.training.export import FLUX_FOLDER, QWEN_FOLDER

TEXTS = [
    "a large red circle to the left of a small blue square on a white background",
    "A LARGE RED CIRCLE",
    "Hello \U0001f44b\U0001f3fd!",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "e\u0301 o\u0308 combining",
    "\u65e5\u672c\u8a9e\n\ttabs  and   spaces \x00\x07",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_restores_any_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(QWEN_FOLDER)
    back = tokenizer.decode(tokenizer(text).input_ids)
    assert back == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("text", TEXTS)
def test_clip_and_t5_take_any_text(name: str, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FLUX_FOLDER / name)
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77
    assert max(ids) < len(tokenizer)
    assert tokenizer.eos_token_id in ids


def test_words_of_the_world_are_one_token_each() -> None:
    words = len(TEXTS[0].split())
    assert len(AutoTokenizer.from_pretrained(QWEN_FOLDER)(TEXTS[0]).input_ids) == words
    assert len(AutoTokenizer.from_pretrained(FLUX_FOLDER / "tokenizer_2")(TEXTS[0]).input_ids) == (
        words + 1
    )
    assert len(AutoTokenizer.from_pretrained(FLUX_FOLDER / "tokenizer")(TEXTS[0]).input_ids) == (
        words + 2
    )


def test_training_text_is_the_chat_template() -> None:
    processor = AutoProcessor.from_pretrained(QWEN_FOLDER)
    content = [{"type": "image"}, {"type": "text", "text": "Describe this picture."}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    written = chat.opening() + chat.asked("Describe this picture.", chat.IMAGE)
    one = "<|image_pad|>"
    assert rendered.replace(one, one * chat.IMAGE_TOKENS) == written


def test_training_forwards_give_the_peers_numbers() -> None:
    torch.manual_seed(0)
    model = parts.build_transformer()
    clip, t5 = parts.build_clip(300), parts.build_t5(200)
    ids = torch.randint(3, 200, (2, 24))
    ids[:, -1] = 299
    text = torch.zeros(24, 3)
    places = train_flux.image_ids()
    latents, sigma = torch.randn(2, 64, 64), torch.rand(2)
    guidance = torch.full((2,), 3.5)
    with torch.no_grad():
        pooled = encoders.clip_pooled(clip, ids)
        assert torch.allclose(pooled, clip(ids).pooler_output, atol=1e-5)
        states = encoders.t5_states(t5, ids.clamp_max(199), encoders.t5_buckets(t5, 24))
        assert torch.allclose(states, t5(ids.clamp_max(199))[0], atol=1e-5)
        tables = train_flux.tables_for(model, 24, torch.device("cpu"))
        mine = flux_forward.velocity(model, latents, states, pooled, sigma, guidance, tables)
        theirs = model(
            hidden_states=latents, encoder_hidden_states=states, pooled_projections=pooled,
            timestep=sigma, guidance=guidance, img_ids=places, txt_ids=text, return_dict=False,
        )[0]  # fmt: skip
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_folders_have_the_real_layouts() -> None:
    index = json.loads((FLUX_FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    vae = json.loads((FLUX_FOLDER / "vae" / "config.json").read_text())
    assert (vae["latent_channels"], vae["sample_size"]) == (16, 128)
    config = json.loads((QWEN_FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_both_checkpoints_fit_the_repository() -> None:
    total = sum(_size(folder) for folder in (FLUX_FOLDER, QWEN_FOLDER))
    assert total <= 16 * 1024 * 1024


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_no_config_has_a_path_of_its_machine() -> None:
    for folder in (FLUX_FOLDER, QWEN_FOLDER):
        for config in folder.rglob("*.json"):
            assert '"_name_or_path": "/' not in config.read_text(), config.name
