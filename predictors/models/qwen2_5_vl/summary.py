"""Describes a Qwen2.5-VL folder, or refuses it, without torch or transformers: `chat.summary`."""

from __future__ import annotations

from pathlib import Path

from predictors.chat.summary import summarise_chat
from predictors.compute.checkpoint.folder import reading
from predictors.compute.checkpoint.summary import CardFacts, FolderSummary
from predictors.models.qwen2_5_vl.folder import decoder_sizes, read_folder, vision_tensors
from predictors.settings import Settings

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


def summarise(folder: Path, settings: Settings, card: CardFacts) -> FolderSummary:
    """The content of a folder, and its memory on `card`.

    Raises `ServingError` with the start's own message for a folder that is not served.
    """
    raw, text, vision = read_folder(folder)
    with reading("config.json"):
        sizes, tensors = decoder_sizes(raw, text), vision_tensors(vision)
    return summarise_chat(folder, ARCHITECTURE, raw, sizes, tensors, settings, card)
