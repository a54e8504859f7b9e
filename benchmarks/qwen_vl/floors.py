"""Operations and bytes of an answer of Qwen2.5-VL, and the time a card needs for them at its own
best rates.

A multiply and an add are two operations. Decoding reads every weight of the text model once per
step, the head included, and each sequence's keys and values. Reading alone is counted at the
rate of a copy, which reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VISION_HIDDEN, VISION_MLP, DEPTH, FULL_BLOCKS = 1280, 3420, 32, 4
"""The vision tower of all sizes."""
PIXELS = 3 * 14 * 14
WINDOW = 64
WIDTH = 2
"""Bytes of a bfloat16."""
PATCH, MERGED = 14, 28


@dataclass(frozen=True, slots=True)
class Rates:
    operations_per_s: float
    """A large matmul in bfloat16."""
    bytes_per_s: float

    @classmethod
    def of(cls, ceilings: Mapping[str, float]) -> Rates:
        return cls(ceilings["bf16"], ceilings["copy_bytes_per_s"])


def grid(width: int, height: int) -> tuple[int, int]:
    """Patches per row and column of a picture, sides rounded to whole tokens."""
    return 2 * max(1, round(width / MERGED)), 2 * max(1, round(height / MERGED))


@dataclass(frozen=True, slots=True)
class ModelFloors:
    """Least bytes and operations of an answer of one size."""

    hidden: int
    mlp: int
    layers: int
    kv_width: int
    """Of a token's keys in one layer, and of its values."""
    vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelFloors:
        """Of a config with a `text_config`."""
        text = config["text_config"]
        head = text["hidden_size"] // text["num_attention_heads"]
        return cls(
            hidden=text["hidden_size"],
            mlp=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            kv_width=text["num_key_value_heads"] * head,
            vocab=text["vocab_size"],
        )

    @property
    def block(self) -> int:
        """Weights of a layer's matrices."""
        hidden = self.hidden
        return hidden * (hidden + 2 * self.kv_width) + hidden * hidden + 3 * hidden * self.mlp

    @property
    def kv_bytes(self) -> int:
        """Of one token, all layers."""
        return 2 * self.kv_width * self.layers * WIDTH

    @property
    def weight_bytes(self) -> int:
        """Read per decode step, the head included, whether or not its weights are its own."""
        biases, norms = self.hidden + 2 * self.kv_width, 2 * self.hidden
        return WIDTH * (self.layers * (self.block + biases + norms) + self.vocab * self.hidden)

    def vision_operations(self, width: int, height: int) -> float:
        """The tower and its merger, for one picture."""
        across, down = grid(width, height)
        patches = across * down
        weights = 4 * VISION_HIDDEN**2 + 3 * VISION_HIDDEN * VISION_MLP
        linear = DEPTH * weights + PIXELS * VISION_HIDDEN
        merged = 4 * VISION_HIDDEN
        merger = patches / 4 * (merged**2 + merged * self.hidden)
        attended = FULL_BLOCKS * patches + (DEPTH - FULL_BLOCKS) * WINDOW
        return 2 * (patches * linear + merger) + 4.0 * patches * attended * VISION_HIDDEN

    def prefill_operations(self, tokens: float) -> float:
        """The text model over a prompt; causal attention counts half; one row goes through the
        head."""
        linear = 2.0 * (tokens * self.layers * self.block + self.vocab * self.hidden)
        return linear + self.layers * 2.0 * tokens**2 * self.hidden

    def decode_ms(self, rates: Rates, rows: int, tokens: float) -> float:
        """Of one step, by bandwidth: `rows` sequences of so many tokens."""
        return 1e3 * (self.weight_bytes + rows * tokens * self.kv_bytes) / rates.bytes_per_s

    def requests_per_s(
        self, rates: Rates, clients: int, prompt: float, answer: float, vision: float
    ) -> float:
        """Of a closed loop: each request's own operations, and its share of full decode steps.
        `vision` are operations of a request's pictures."""
        operations = vision + self.prefill_operations(prompt)
        step_s = self.decode_ms(rates, clients, prompt + answer / 2) / 1e3
        operations_s = operations / rates.operations_per_s
        if clients == 1:
            operations_s = max(operations_s, self.weight_bytes / rates.bytes_per_s)
        return 1 / (operations_s + answer * step_s / clients)
