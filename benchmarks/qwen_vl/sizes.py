"""The sizes of Qwen2.5-VL that are measured, 3B and 7B: their published configs, and toys that have
the same special features at the embedded checkpoint's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import paths

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelSize:
    name: str
    """As `--size` takes it."""
    title: str
    full: Config
    """The published config's differences from the embedded checkpoint's."""
    toy: Config
    """The toy's differences from it."""
    results_name: str
    """Of the file in benchmarks/results, without its ending."""

    def config(self, *, is_toy: bool) -> Config:
        return self.toy if is_toy else self.full

    def results(self, *, is_toy: bool) -> Path:
        """Where the figures of a run go."""
        folder, end = (paths.SCRATCH, "-toy") if is_toy else (paths.RESULTS, "")
        return folder / f"{self.results_name}{end}.json"

    def folder(self, *, is_toy: bool) -> Path:
        """Where the random checkpoint is kept: on the memory disk, where there is one."""
        shelf = MEMORY if MEMORY.is_dir() else paths.ROOT / "out"
        return shelf / f"qwen-vl-{self.name}-{'toy' if is_toy else 'random'}"


MEMORY = Path("/dev/shm")


def _full(text: Config, *, is_tied: bool) -> Config:
    """A published config; `text` are the decoder's own values."""
    return {
        "tie_word_embeddings": is_tied,
        "text_config": {
            "max_position_embeddings": 128000,
            "layer_types": ["full_attention"] * text["num_hidden_layers"],
            "tie_word_embeddings": is_tied,
            "rope_parameters": {
                "mrope_section": [16, 24, 24],
                "rope_theta": 1000000.0,
                "rope_type": "default",
            },
            **text,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }


THREE = ModelSize(
    "3b",
    "Qwen2.5-VL-3B",
    _full(
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
        is_tied=True,
    ),
    {},
    "qwen_vl",
)
SEVEN = ModelSize(
    "7b",
    "Qwen2.5-VL-7B",
    _full(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        is_tied=False,
    ),
    {
        "tie_word_embeddings": False,
        "text_config": {
            "hidden_size": 448,
            "intermediate_size": 512,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
        "vision_config": {"out_hidden_size": 448},
    },
    "qwen_vl_7b",
)
"""Seven heads share keys and values, and the head has weights of its own; the toy's too."""

SIZES: Mapping[str, ModelSize] = {size.name: size for size in (THREE, SEVEN)}


def size_of(found: Mapping[str, Any]) -> ModelSize:
    """The size that a run measured. Results without a name of one are older than the second."""
    return SIZES[found.get("options", {}).get("size", THREE.name)]
