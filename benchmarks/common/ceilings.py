"""Best rates measured on a card: large matmuls in bf16 and fp8, attention at a model's heads, a
copy. Operands are random: on zeros the same matmul runs a tenth faster (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common.clock import Clock

MATMUL_SIDE = 8192
TOY_SIDE = 256
COPY_BYTES = 4 * 2**30
REPEATS = 20
NOTICEABLE = 1.02


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one pass of a module."""

    linear: float
    """In matmuls that may run in fp8."""
    attention: float
    other: float = 0.0
    """In matmuls and convolutions that never do."""

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.other


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best rates measured on the card, operations per second."""

    bf16: float
    """A square matmul in the dtype of the weights."""
    fp8: float | None
    """The same in row-wise fp8; None where there is none."""
    attention: Mapping[int, float]
    """By number of tokens, at the model's heads."""

    def floor_s(self, work: Operations, tokens: int, *, is_fp8: bool) -> float:
        """Seconds if every operation ran at its ceiling and nothing else took time."""
        linear = self.fp8 if is_fp8 and self.fp8 else self.bf16
        nearest = min(self.attention, key=lambda known: abs(known - tokens))
        return (
            work.linear / linear + work.attention / self.attention[nearest] + work.other / self.bf16
        )


@dataclass(frozen=True, slots=True)
class Measured:
    ceilings: Ceilings
    copy_bytes_per_s: float
    default_attention: dict[int, float]
    """Of `scaled_dot_product_attention` with the kernel that torch chooses."""

    @property
    def cudnn_pays(self) -> bool:
        named = self.ceilings.attention
        return any(named[n] > NOTICEABLE * rate for n, rate in self.default_attention.items())

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"cudnn_pays": self.cudnn_pays}


def measure(
    clock: Clock, dtype: torch.dtype, heads: int, head_dim: int, tokens: Iterable[int]
) -> Measured:
    """A second or two on a GPU."""
    side = MATMUL_SIDE if clock.is_cuda else TOY_SIDE
    default, best = {}, {}
    for n in sorted(set(tokens)):
        qkv = [
            torch.randn(1, heads, n, head_dim, device=clock.device, dtype=dtype) for _ in range(3)
        ]
        work = 4 * n**2 * heads * head_dim
        default[n] = _rate(clock, work, partial(_attention, qkv))
        best[n] = default[n]
        if clock.is_cuda:
            best[n] = max(best[n], _rate(clock, work, partial(_by_cudnn, qkv)))
    ceilings = Ceilings(_matmul(clock, dtype, side), _fp8_matmul(clock, side), best)
    return Measured(ceilings, _copy(clock), default)


def _rate(clock: Clock, work: float, run: Callable[[], object]) -> float:
    return work / (1e-3 * clock.device_ms(run, REPEATS, warm=3).median)


def _attention(qkv: list[torch.Tensor]) -> torch.Tensor:
    query, key, value = qkv
    return F.scaled_dot_product_attention(query, key, value)


def _by_cudnn(qkv: list[torch.Tensor]) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _attention(qkv)


def _matmul(clock: Clock, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))
    return _rate(clock, 2 * side**3, lambda: a @ b.t())


def _fp8_matmul(clock: Clock, side: int) -> float | None:
    """Row-wise scales, as served; None on a device without it."""
    if not clock.is_cuda or torch.cuda.get_device_capability(clock.device) < (8, 9):
        return None
    a, b = (torch.randn(side, side, device=clock.device) for _ in range(2))
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    scale = torch.ones(side, 1, device=clock.device)

    def run() -> torch.Tensor:
        return torch._scaled_mm(
            a8, b8.t(), scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return _rate(clock, 2 * side**3, run)


def _copy(clock: Clock) -> float:
    num_bytes = COPY_BYTES if clock.is_cuda else 2**20
    source = torch.empty(num_bytes, dtype=torch.uint8, device=clock.device).random_()
    target = torch.empty_like(source)
    return _rate(clock, 2 * num_bytes, lambda: target.copy_(source))
