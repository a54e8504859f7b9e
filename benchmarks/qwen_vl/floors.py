"""Operations and bytes of an answer of Qwen2.5-VL-3B, and the time a card needs for them at its own
best rates.

A multiply and an add are two operations. Decoding reads every weight of the text model once per
step, the tied head included, and each sequence's keys and values. Reading alone is counted at the
rate of a copy, which reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HIDDEN, MLP, LAYERS, KV_WIDTH, VOCAB = 2048, 11008, 36, 2 * 128, 151936
BLOCK = HIDDEN * (HIDDEN + 2 * KV_WIDTH) + HIDDEN * HIDDEN + 3 * HIDDEN * MLP
VISION_HIDDEN, VISION_MLP, DEPTH, FULL_BLOCKS = 1280, 3420, 32, 4
PIXELS = 3 * 14 * 14
WINDOW = 64
WIDTH = 2
"""Bytes of a bfloat16."""
PATCH, MERGED = 14, 28
KV_BYTES = 2 * KV_WIDTH * LAYERS * WIDTH
"""Of one token, all layers."""
WEIGHT_BYTES = WIDTH * (LAYERS * (BLOCK + HIDDEN + 2 * KV_WIDTH + 2 * HIDDEN) + VOCAB * HIDDEN)
"""Read per decode step."""


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


def vision_operations(width: int, height: int) -> float:
    """The tower and its merger, for one picture."""
    across, down = grid(width, height)
    patches = across * down
    weights = 4 * VISION_HIDDEN**2 + 3 * VISION_HIDDEN * VISION_MLP
    linear = DEPTH * weights + PIXELS * VISION_HIDDEN
    merged = 4 * VISION_HIDDEN
    merger = patches / 4 * (merged**2 + merged * HIDDEN)
    attended = FULL_BLOCKS * patches + (DEPTH - FULL_BLOCKS) * WINDOW
    return 2 * (patches * linear + merger) + 4.0 * patches * attended * VISION_HIDDEN


def prefill_operations(tokens: float) -> float:
    """The text model over a prompt; causal attention counts half; one row goes through the head."""
    linear = 2.0 * (tokens * LAYERS * BLOCK + VOCAB * HIDDEN)
    return linear + LAYERS * 2.0 * tokens**2 * HIDDEN


def decode_ms(rates: Rates, rows: int, tokens: float) -> float:
    return 1e3 * (WEIGHT_BYTES + rows * tokens * KV_BYTES) / rates.bytes_per_s


def requests_per_s(
    rates: Rates, clients: int, prompt: float, answer: float, vision: float
) -> float:
    """Of a closed loop: each request's own operations, and its share of full decode steps.
    `vision` are operations of a request's pictures."""
    operations = vision + prefill_operations(prompt)
    step_s = decode_ms(rates, clients, prompt + answer / 2) / 1e3
    if clients == 1:
        operations_s = max(operations / rates.operations_per_s, WEIGHT_BYTES / rates.bytes_per_s)
    else:
        operations_s = operations / rates.operations_per_s
    return 1 / (operations_s + answer * step_s / clients)
