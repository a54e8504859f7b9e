"""Attention at this model's shapes by each kernel of torch: FlashAttention 2, cuDNN's, the
memory-efficient one. The share of this engine's own kernels is in the traces of the part `profile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common.clock import Clock
from benchmarks.common.run import PartialResults
from benchmarks.qwen_vl.options import QwenVLOptions

KERNELS = {
    "FlashAttention 2": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
REPEATS = 20


@dataclass(frozen=True, slots=True)
class Shape:
    """One call of a layer: `rows` problems of `queries` x `keys` tokens."""

    name: str
    rows: int
    heads: int
    head_dim: int
    queries: int
    keys: int
    is_causal: bool = False

    @property
    def operations(self) -> float:
        """Causal attention counts half."""
        whole = 4.0 * self.rows * self.heads * self.head_dim * self.queries * self.keys
        return whole / 2 if self.is_causal else whole


def shapes(text: Mapping[str, Any]) -> tuple[Shape, ...]:
    """Of the tower, and of a decoder with this `text_config`, keys repeated for each head."""
    heads = text["num_attention_heads"]
    head_dim = text["hidden_size"] // heads
    return (
        Shape("tower, full block, 1024x1024", 1, 16, 80, 5476, 5476),
        Shape("tower, windows, 1024x1024", 100, 16, 80, 64, 64),
        Shape("tower, full block, 448x448", 1, 16, 80, 1024, 1024),
        Shape("prompt with 1024x1024", 1, heads, head_dim, 1433, 1433, is_causal=True),
        Shape("decode, 1 row", 1, heads, head_dim, 1, 1536),
        Shape("decode, 64 rows", 64, heads, head_dim, 1, 1536),
    )


TOY_SHAPES = (Shape("toy", 1, 4, 32, 64, 64), Shape("toy, causal", 1, 4, 32, 64, 64, True))


def attention(options: QwenVLOptions, results: PartialResults) -> None:
    """Milliseconds by shape and kernel; None for a kernel that does not take a shape."""
    clock = Clock(torch.device(options.device))
    dtype = torch.bfloat16 if clock.is_cuda else torch.float32
    for shape in TOY_SHAPES if options.is_toy else shapes(options.config["text_config"]):
        results.add(shape.name, {name: one(clock, dtype, shape, name) for name in KERNELS})


def one(clock: Clock, dtype: torch.dtype, shape: Shape, kernel: str) -> dict[str, Any]:
    made = partial(torch.randn, device=clock.device, dtype=dtype)
    query = made(shape.rows, shape.heads, shape.queries, shape.head_dim)
    key, value = (made(shape.rows, shape.heads, shape.keys, shape.head_dim) for _ in range(2))

    def run() -> Tensor:
        with sdpa_kernel(KERNELS[kernel]):
            return F.scaled_dot_product_attention(query, key, value, is_causal=shape.is_causal)

    try:
        ms = clock.device_ms(run, REPEATS, warm=3).median
    except RuntimeError:
        return {"ms": None}
    return {"ms": ms, "tflops": shape.operations / ms / 1e9}
