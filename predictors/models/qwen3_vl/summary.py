"""Describes a Qwen3-VL folder, or refuses it, without torch or transformers: `chat.summary`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from predictors.chat.adapters.peft import read_peft_adapter
from predictors.chat.summary import summarise_chat
from predictors.compute.checkpoint.folder import reading
from predictors.compute.checkpoint.summary import AdapterSummary, CardFacts, FolderSummary
from predictors.models.qwen3_vl.folder import decoder_sizes, linears, read_folder, vision_tensors
from predictors.settings import Settings

ARCHITECTURE = "Qwen3VLForConditionalGeneration"


def summarise(folder: Path, settings: Settings, card: CardFacts) -> FolderSummary:
    """The content of a folder, and its memory on `card`.

    Raises `ServingError` with the start's own message for a folder that is not served.
    """
    raw, text, vision = read_folder(folder)
    with reading("config.json"):
        sizes, tensors = decoder_sizes(raw, text), vision_tensors(vision)
    return summarise_chat(folder, ARCHITECTURE, raw, sizes, tensors, settings, card)


def describe_adapter(
    name: str,
    path: Path,
    checkpoint: Path,
    settings: Settings,
    components: Mapping[str, Path] = MappingProxyType({}),
) -> AdapterSummary:
    """The adapter at `path` as a server of `checkpoint`, which has no `components`, would load it.
    Reads the whole file. Raises `ServingError` with the start's own message for one that is not
    served."""
    assert not components
    raw, *_ = read_folder(checkpoint)
    return read_peft_adapter(path, linears(raw), settings.qwen_vl.lora_max_rank).summary(name)
