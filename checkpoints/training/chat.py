"""Qwen2.5-VL's chat template, and the same turn written out as a plain string for training.

A picture is its placeholder, repeated once per merged patch.
"""

from __future__ import annotations

SYSTEM = "You are a helpful assistant."
IMAGE_TOKENS = 25  # a 128x128 picture becomes 140x140: 10x10 patches, merged 2x2

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"


def opening(system: str = SYSTEM) -> str:
    """The system turn that every conversation starts with."""
    return f"<|im_start|>system\n{system}<|im_end|>\n"


def asked(question: str, image: str = "", image_first: bool = True) -> str:
    """One user turn and the opening of the assistant's."""
    content = image + question if image_first else question + image
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def answered(answer: str) -> str:
    """The assistant's text and its end token."""
    return f"{answer}<|im_end|>"
