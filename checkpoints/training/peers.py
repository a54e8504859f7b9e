"""`draw` and `answer` for the evaluation, by diffusers and transformers. Any engine with these two
callables can take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from checkpoints.training.export import FLUX_FOLDER, QWEN_FOLDER

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
Answer = Callable[[Sequence[Image.Image], str], list[str]]


@dataclass(frozen=True)
class Conversation:
    """A question, its picture and tools, and the messages that followed it."""

    question: str
    image: Image.Image | None = None
    tools: Sequence[dict[str, Any]] = ()
    more: Sequence[dict[str, Any]] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As the chat template takes them."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.question}]
        if self.image is not None:
            content.insert(0, {"type": "image"})
        return [{"role": "user", "content": content}, *self.more]


Talk = Callable[[Sequence[Conversation]], list[str]]


def peer_draw(
    folder: Path = FLUX_FOLDER,
    device: str = "cpu",
    steps: int = 20,
    prompt_length: int = 512,
    batch: int = 50,
) -> Draw:
    """Pictures from prompts by diffusers' own FluxPipeline, in fp32."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        images: list[Image.Image] = []
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]]
            images += pipeline(
                list(prompts[part]),
                height=128,
                width=128,
                num_inference_steps=steps,
                max_sequence_length=prompt_length,
                generator=noise,
            ).images
        return images

    return draw


def peer_answer(folder: Path = QWEN_FOLDER, device: str = "cpu", batch: int = 100) -> Answer:
    """Answers by transformers' own generate, in fp32, with the checkpoint's own defaults."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()

    def answer(images: Sequence[Image.Image], question: str) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            inputs = processor(
                text=[prompt] * len(part), images=list(part), padding=True, return_tensors="pt"
            ).to(device)
            out = model.generate(**inputs, max_new_tokens=40)
            said = out[:, inputs["input_ids"].shape[1] :]
            texts += processor.batch_decode(said, skip_special_tokens=True)
        return texts

    return answer


def peer_talk(folder: Path = QWEN_FOLDER, device: str = "cpu", batch: int = 100) -> Talk:
    """Answers to any conversations by transformers' own generate, as `peer_answer`. All of them
    have a picture, or none."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()

    def talk(conversations: Sequence[Conversation]) -> list[str]:
        prompts = [
            processor.apply_chat_template(
                x.messages, tools=list(x.tools) or None, add_generation_prompt=True, tokenize=False
            )
            for x in conversations
        ]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            images = [image for number in part if (image := conversations[number].image)]
            inputs = processor(
                text=[prompts[number] for number in part],
                images=images or None,
                padding=True,
                return_tensors="pt",
            ).to(device)
            out = model.generate(**inputs, max_new_tokens=128)
            said = out[:, inputs["input_ids"].shape[1] :]
            made = processor.batch_decode(said, skip_special_tokens=True)
            for number, text in zip(part, made, strict=True):
                texts[number] = text
        return texts

    return talk
