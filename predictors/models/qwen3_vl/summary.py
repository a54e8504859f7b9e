"""Describes a Qwen3-VL folder or an adapter of it, or refuses it, without torch."""

from __future__ import annotations

from predictors.chat.summary import ChatFolders
from predictors.models.qwen3_vl.folder import decoder_sizes, linears, read_folder, vision_tensors

FOLDERS = ChatFolders(
    "Qwen3VLForConditionalGeneration", read_folder, decoder_sizes, vision_tensors, linears
)
summarise = FOLDERS.summarise
describe_adapter = FOLDERS.describe_adapter
