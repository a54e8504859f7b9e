"""transformers' own model and processor, called as its documentation shows."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from predictors.chat.request import ChatRequest, Message, Picture
from tests.chat.room import Room

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


def assert_equal_prompts_and_patches(
    room: Room, reference: Reference, requests: Sequence[ChatRequest]
) -> None:
    """The prompt's tokens, the patches of its pictures and their grids are the reference's."""
    for request in requests:
        work, theirs = room.inputs.prepare(request), reference.inputs(request)
        assert work.tokens.tolist() == theirs["input_ids"][0].tolist()
        if not work.pictures:
            continue
        side = reference.parts.image_processor.patch_size
        patches = theirs["pixel_values"].view(len(theirs["pixel_values"]), 3, 2, side * side)
        ours = torch.cat([picture.prepared.values for picture in work.pictures])
        assert torch.equal(patches[:, :, 0].flatten(1), ours)
        assert torch.equal(patches[:, :, 0], patches[:, :, 1])  # why one frame is enough
        grids = [(1, *picture.prepared.grid) for picture in work.pictures]
        assert grids == [tuple(grid) for grid in theirs["image_grid_thw"].tolist()]


def assert_equal_positions(
    room: Room, reference: Reference, requests: Sequence[ChatRequest]
) -> None:
    """Rotary positions, and the one that comes next, are those of `get_rope_index`."""
    for request in requests:
        work, given = room.inputs.prepare(request), reference.inputs(request)
        theirs, delta = reference.model.model.get_rope_index(
            input_ids=given["input_ids"],
            mm_token_type_ids=given["mm_token_type_ids"],
            image_grid_thw=given.get("image_grid_thw"),
        )
        assert torch.equal(work.positions, theirs[:, 0])
        assert work.next_position == work.num_prompt_tokens + int(delta)


def _content(message: Message) -> list[dict[str, str]]:
    return [
        {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
        for part in message.parts
    ]
