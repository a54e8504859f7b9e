"""transformers' own model and processor, called as its documentation shows. Films of Qwen2.5-VL
have the positions of Qwen's training instead of the library's, which differ (ADR 0065).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from predictors.chat.film import Film
from predictors.chat.request import (
    ChatRequest,
    Message,
    Picture,
)
from predictors.chat.work import ChatWork
from tests.chat.room import Room
from tests.chat.trained_positions import TrainedPositions

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
        if model.config.model_type == "qwen2_5_vl":
            model.model.get_rope_index = TrainedPositions(model.model)
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
        films = [self._film(film) for film in request.films]
        given = {
            "videos": [frames for frames, _ in films],
            "videos_kwargs": {
                "video_metadata": [metadata for _, metadata in films],
                "do_sample_frames": False,
                "cap_pixels_per_frame": False,
            },
        }
        return self.parts(
            text=[text],
            images=pictures or None,
            images_kwargs={"size": size},
            return_tensors="pt",
            **(given if films else {}),
        )

    def _film(self, film: Film) -> tuple[Any, VideoMetadata]:
        """The frames that transformers reads of a film, and what it notes of them."""
        videos, options = self.parts.video_processor, film.options
        asked = {"fps": options.fps, "num_frames": options.num_frames}
        if asked["num_frames"] is None and asked["fps"] is None:
            asked["fps"] = 2.0
        import av  # an extra that a GPU machine lacks

        with av.open(io.BytesIO(film.files[0])) as container:
            stream = container.streams.video[0]
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
            assert stream.average_rate is not None
            metadata = VideoMetadata(total_num_frames=len(frames), fps=float(stream.average_rate))
        metadata.frames_indices = videos.sample_frames(metadata, **asked)
        return np.stack([frames[i] for i in metadata.frames_indices]), metadata

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
        if request.films:
            _assert_equal_films(reference, request, work, theirs)
        stills = [picture for picture in work.pictures if picture.prepared.frames == 1]
        if not stills:
            continue
        side = reference.parts.image_processor.patch_size
        patches = theirs["pixel_values"].view(len(theirs["pixel_values"]), 3, 2, side * side)
        ours = torch.cat([picture.prepared.values for picture in stills])
        assert torch.equal(patches[:, :, 0].flatten(1), ours)
        assert torch.equal(patches[:, :, 0], patches[:, :, 1])  # why one frame is enough
        grids = [(1, *picture.prepared.grid) for picture in stills]
        assert grids == [tuple(grid) for grid in theirs["image_grid_thw"].tolist()]


def _assert_equal_films(
    reference: Reference, request: ChatRequest, work: ChatWork, theirs: Any
) -> None:
    side = reference.parts.image_processor.patch_size
    steps = [picture.prepared for picture in work.pictures if picture.prepared.frames == 2]
    ours = torch.cat([step.values for step in steps]).unflatten(1, (2, 3, side * side))
    patches = theirs["pixel_values_videos"].unflatten(1, (3, 2, side * side))
    assert torch.equal(patches.transpose(1, 2), ours)
    grids = theirs["video_grid_thw"].tolist()
    assert sum(grid[0] for grid in grids) == len(steps)
    found = [(side * grid[2], side * grid[1]) for grid in grids]
    assert [(size.width, size.height) for size in work.films] == found
    merged = reference.parts.video_processor.merge_size**2
    assert [size.tokens for size in work.films] == [
        grid[0] * grid[1] * grid[2] // merged for grid in grids
    ]


def assert_equal_positions(
    room: Room, reference: Reference, requests: Sequence[ChatRequest]
) -> None:
    """Rotary positions, and the one that comes next, are those of the reference."""
    for request in requests:
        work, given = room.inputs.prepare(request), reference.inputs(request)
        theirs, delta = reference.model.model.get_rope_index(
            input_ids=given["input_ids"],
            mm_token_type_ids=given["mm_token_type_ids"],
            image_grid_thw=given.get("image_grid_thw"),
            video_grid_thw=given.get("video_grid_thw"),
            second_per_grid_ts=given.get("second_per_grid_ts"),
        )
        assert torch.equal(work.positions, theirs[:, 0])
        assert work.next_position == work.num_prompt_tokens + int(delta)


def _content(message: Message) -> list[dict[str, str]]:
    kinds = {Picture: "image", Film: "video"}
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": kinds[type(part)]}
        for part in message.parts
    ]
