"""Writes the two checkpoints in exactly the layouts of the real repositories, weights in bf16.

The caller passes the parts. Model cards (README.md) beside the weights are not changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5EncoderModel,
    T5Tokenizer,
)

from checkpoints.training import parts
from checkpoints.training.chat import CHAT_TEMPLATE
from checkpoints.training.tokenizers import (
    QWEN_ADDED,
    QWEN_SPECIAL,
    clip_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
    write_vocabulary,
)

ROOT = Path(__file__).resolve().parents[1]
FLUX_FOLDER = ROOT / "shapes-flux"
QWEN_FOLDER = ROOT / "shapes-qwen-vl"
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]


def special_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """The numbers of Qwen's special tokens."""
    return {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIAL + QWEN_ADDED}


def qwen_rows(tokenizer: Qwen2Tokenizer) -> int:
    """Rows of the embedding: a multiple of 64 above the vocabulary, with spare rows as in the real
    one."""
    return -(-len(tokenizer) // 64) * 64


def load_tokenizers(
    folder: Path = FLUX_FOLDER,
) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """The FLUX tokenizers as exported."""
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return clip, T5Tokenizer.from_pretrained(folder / "tokenizer_2")


def _forget_where(config_file: Path) -> None:
    """Remove the path that the part was loaded from."""
    config = json.loads(config_file.read_text())
    config.pop("_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_flux(
    vae: AutoencoderKL,
    transformer: FluxTransformer2DModel,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer],
    folder: Path = FLUX_FOLDER,
) -> None:
    """Write the FLUX checkpoint in diffusers' layout."""
    pipeline = FluxPipeline(
        scheduler=parts.build_scheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=tokenizers[0],
        text_encoder_2=t5,
        tokenizer_2=tokenizers[1],
        transformer=transformer,
    )
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    for part in ("transformer", "vae"):
        _forget_where(folder / part / "config.json")
    write_vocabulary(tokenizers[0], folder / "tokenizer")
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    # The name in the real repository. Older transformers need the fast class for tokenizer.json.
    index["tokenizer_2"] = ["transformers", "T5TokenizerFast"]
    index.pop("_name_or_path", None)
    _write_json(index_file, index)
    _readable(folder)


def export_qwen_vl(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    folder: Path = QWEN_FOLDER,
) -> None:
    """Write the Qwen2.5-VL checkpoint in transformers' layout."""
    ids = special_ids(tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        do_sample=True,
        repetition_penalty=1.05,
        temperature=0.000001,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_vocabulary(tokenizer, folder)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _readable(folder)


def _readable(folder: Path) -> None:
    """Undo the owner-only mode that safetensors files are written with."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export_untrained() -> None:
    """Write both checkpoints with random weights: the layout, before any training."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    export_flux(
        parts.build_vae(),
        parts.build_transformer(),
        parts.build_clip(len(clip)),
        parts.build_t5(len(t5)),
        (clip, t5),
    )
    qwen = qwen_tokenizer()
    export_qwen_vl(parts.build_qwen_vl(qwen_rows(qwen), special_ids(qwen)), qwen)


if __name__ == "__main__":
    export_untrained()
