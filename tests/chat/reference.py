"""transformers' own model and processor, called as its documentation shows."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from predictors.chat.request import ChatRequest, Message, Picture

MAX_PIXELS = 1_003_520


@dataclass
class Reference:
    """`generate` in fp32 with SDPA attention."""

    model: Any
    parts: Any

    @classmethod
    def load(cls, checkpoint: Path) -> Reference:
        """Model and processor of a checkpoint."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForImageTextToText.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
            )
            parts = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
        return cls(model.eval(), parts)

    def inputs(self, request: ChatRequest) -> Any:
        """The arguments of `generate`."""
        turns = [{"role": m.role, "content": _content(m)} for m in request.messages]
        text = self.parts.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        pictures = [
            Image.open(io.BytesIO(part.raw)).convert("RGB")
            for message in request.messages
            for part in message.parts
            if isinstance(part, Picture)
        ]
        least = self.parts.image_processor.size["shortest_edge"]
        size = {"shortest_edge": least, "longest_edge": MAX_PIXELS}
        return self.parts(
            text=[text], images=pictures or None, images_kwargs={"size": size}, return_tensors="pt"
        )

    def answer(self, request: ChatRequest, **sampling: Any) -> list[int]:
        """Greedy tokens, with the same penalty and length as the request's."""
        given = self.inputs(request)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            out = self.model.generate(
                **given,
                do_sample=False,
                temperature=None,
                repetition_penalty=request.sampling.repetition_penalty,
                max_new_tokens=request.max_tokens,
                **sampling,
            )
        return [int(token) for token in out[0, given["input_ids"].shape[1] :]]


def _content(message: Message) -> list[dict[str, str]]:
    return [
        {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
        for part in message.parts
    ]
