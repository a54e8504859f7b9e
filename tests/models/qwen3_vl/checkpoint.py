"""A small random Qwen3-VL checkpoint, written by transformers itself, and the same as the hub has
it. The tokenizer is that of the embedded checkpoint.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.chat.room import CHECKPOINT

TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
TEXT: dict[str, Any] = {
    "vocab_size": 832, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,  # not hidden / heads
    "max_position_embeddings": 4096, "bos_token_id": 800, "eos_token_id": 802,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 4, "hidden_size": 48, "intermediate_size": 100, "num_heads": 4, "out_hidden_size": 64,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
TOKENS = {
    "image_token_id": 812, "video_token_id": 813, "vision_start_token_id": 809,
    "vision_end_token_id": 810,
}  # fmt: skip
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 4096},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
"""As the hub has it, but for the least area, which is 65536 there."""
GENERATION = {
    "bos_token_id": 800, "do_sample": True, "eos_token_id": [802, 800], "pad_token_id": 800,
    "repetition_penalty": 1.0, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
}  # fmt: skip
TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for content in messages[0].content %}
            {%- if 'text' in content %}{{- content.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif content.type == 'video' or 'video' in content %}
                    {%- set video_count.value = video_count.value + 1 %}
                    {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}
                    <|vision_start|><|video_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def write_checkpoint(target: Path, *, tied: bool = True) -> Path:
    """As `save_pretrained` of transformers 5 writes it: nested config with `rope_parameters`, one
    file. Weights are large enough that answers depend on every pixel and position."""
    target.mkdir(parents=True, exist_ok=True)
    config = Qwen3VLConfig(
        text_config=dict(TEXT), vision_config=dict(VISION), tie_word_embeddings=tied, **TOKENS
    )
    generator = torch.Generator().manual_seed(5)
    num_tokens = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).get_vocab_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Qwen3VLForConditionalGeneration(config)
        for name, weight in model.named_parameters():
            weight.data = _large(name, weight, generator)
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                weight.data[num_tokens:] = 0.0  # or an answer could begin with no token
        model.save_pretrained(target)
    for name in TOKENIZER:
        shutil.copy(CHECKPOINT / name, target)
    settings = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    _write(target / "tokenizer_config.json", settings)
    _write(target / "chat_template.json", {"chat_template": TEMPLATE})
    _write(target / "preprocessor_config.json", PREPROCESSOR)
    _write(target / "generation_config.json", GENERATION)
    return target


def _large(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if weight.dim() == 1:
        return 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
    if name.endswith(("embed_tokens.weight", "pos_embed.weight")):
        return noise
    return noise * 1.5 / weight[0].numel() ** 0.5


def rewrite_as_hub(source: Path, target: Path) -> Path:
    """The checkpoint as the hub ships it: `rope_scaling`, the vision tower's old `model_type`,
    bfloat16 in two shards with an index."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "dtype": "bfloat16"}
    vision.pop("rope_parameters")
    vision["model_type"] = "qwen3_vl"
    config.pop("dtype")
    config["transformers_version"] = "4.57.0.dev0"
    _write(target / "config.json", config)
    (target / "model.safetensors").unlink()
    stored = load_file(source / "model.safetensors")
    names, index = sorted(stored), {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        part = {name: stored[name].to(torch.bfloat16) for name in names[i::2]}
        save_file(part, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    _write(
        target / "model.safetensors.index.json",
        {"metadata": {"total_size": 0}, "weight_map": index},
    )
    return target


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
