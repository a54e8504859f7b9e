"""Chooses the attention kernel: the installed ones are measured once at load, on the device and for
the shape that will be served.

On Hopper cuDNN's kernel, which comes with torch, is about twice as fast as FlashAttention 2 and
about as fast as FlashAttention 3 at a picture's lengths (faster when cold, 6 % slower at the power
limit of an H200); on other GPUs another one wins. The bits of a result depend on the kernel, so it
is replaced only by one that is faster by more than noise.
"""

from __future__ import annotations

import importlib
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from predictors import metrics
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement
from predictors.settings import InvalidSetting

log = logging.getLogger(__name__)

MARGIN = 0.95  # largest ratio of times at which a later kernel replaces the fastest so far
TOLERANCE = 0.01  # relative distance to float32; bfloat16 has eight bits
HOPPER = (9, 0)  # on older GPUs FlashAttention 2 is tried first
NUM_CALLS = 8  # in one graph, so that the host's launch time is not measured
NUM_ROUNDS = 7
FP8_TOLERANCE = 0.1  # for normal values; e4m3 has four bits, which gives 0.054
NUM_CHECKED_TOKENS = 1024

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes query, key, value (rows, heads, tokens, head_dim), last dimension contiguous. Returns
(rows, tokens, heads * head_dim), contiguous. No mask; scaled by head_dim ** -0.5."""


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel that torch chooses. Any device, any dtype."""
    return _joined(F.scaled_dot_product_attention(query, key, value))


def _joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # the operator itself, without a context manager or a choice per call
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    return _joined(attend(query, key, value, None, False, 0.0, False, False)[0])


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_flash_attention.default
    return _joined(attend(query, key, value, 0.0, False, False)[0])


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return _joined(attend(query, key, value, None, False, 0.0, False)[0])


def _of_package(module: str) -> Attention:
    """The function of a FlashAttention package; raises `ImportError` if it is not installed."""
    attend = _tokens_first(module)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(*(x.transpose(1, 2) for x in (query, key, value)))

    return call


def _tokens_first(module: str) -> Attention:
    """The same for inputs of (rows, tokens, heads, head_dim), the package's own layout."""
    attend = importlib.import_module(module).flash_attn_func

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = attend(query, key, value)
        joined: Tensor = (mixed[0] if isinstance(mixed, tuple) else mixed).flatten(2)
        return joined

    return call


def fp8_attention(placement: Placement, head_dim: int) -> Attention | None:
    """Attention over e4m3 (rows, tokens, heads, head_dim) with joined heads in bfloat16 as result;
    None without FlashAttention 3 or a Hopper GPU.

    There are no scales, so queries and keys have to be normed before. On an H200 at its power limit
    it takes 0.32 ms for 24 x 128 at 4,608 tokens; cuDNN in bfloat16 takes 0.46 ms.
    """
    if not placement.is_cuda or torch.cuda.get_device_capability(placement.device) != HOPPER:
        return None
    for module in ("flash_attn_interface", "fa3_fwd_interface"):
        try:
            attend = _tokens_first(module)
        except (ImportError, OSError, AttributeError):
            continue
        if _works_in_fp8(attend, placement, head_dim):
            return attend
    return None


def _works_in_fp8(attend: Attention, placement: Placement, head_dim: int) -> bool:
    generator = torch.Generator(placement.device).manual_seed(0)
    shape = (1, NUM_CHECKED_TOKENS, 3, 2, head_dim)
    packed = torch.randn(shape, generator=generator, dtype=torch.float32, device=placement.device)
    heads = [x.contiguous().to(torch.float8_e4m3fn) for x in packed.unbind(2)]
    try:
        error = _distance(attend(*heads), packed)
    except RuntimeError as reason:
        log.warning("fp8 attention does not work here: %s", reason)
        return False
    if not error < FP8_TOLERANCE:
        log.warning("fp8 attention is off by %.3g and is left out", error)
        return False
    return True


# in the order of measuring: the first is kept unless a later one is clearly faster
KERNELS: Mapping[str, Callable[[], Attention]] = {
    "cudnn": lambda: _cudnn,
    "flash": lambda: _flash,
    "flash_attn_3": lambda: _of_package("flash_attn_interface"),
    "fa3_fwd": lambda: _of_package("fa3_fwd_interface"),
    "flash_attn_2": lambda: _of_package("flash_attn"),
    "efficient": lambda: _efficient,
    "sdpa": lambda: sdpa,
}


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The chosen kernel, and the measured times and errors of all."""

    name: str
    attention: Attention
    milliseconds: Mapping[str, float]
    """Time per call of each kernel that works on this device; empty without CUDA."""
    errors: Mapping[str, float]
    """Relative distance of each kernel to float32."""

    def announce(self, model: str) -> None:
        metrics.attention_info.labels(model, self.name).set(1)
        for name, milliseconds in self.milliseconds.items():
            metrics.attention_seconds.labels(model, name).set(milliseconds / 1e3)
        log.info("%s: attention by %s; milliseconds %s", model, self.name, dict(self.milliseconds))


def choose_attention(
    placement: Placement,
    num_heads: int,
    head_dim: int,
    num_tokens: int,
    wanted: str | None = None,
) -> AttentionChoice:
    """The fastest kernel that is accurate and can be captured, for one row of `num_tokens`.

    `wanted` names a kernel instead (default: the placement's); raises `InvalidSetting` if it does
    not work here. Without CUDA it is `sdpa`, unmeasured. Engine thread; waits for the device for
    about a second.
    """
    wanted = placement.attention if wanted is None else wanted
    if not placement.is_cuda:
        return AttentionChoice("sdpa", sdpa, {}, {})
    generator = torch.Generator(placement.device).manual_seed(0)
    shape = (1, num_tokens, 3, num_heads, head_dim)  # the layout of a fused projection's result
    packed = torch.randn(shape, generator=generator, dtype=placement.dtype, device=placement.device)
    candidates = {}
    graphs = Graphs("attention", placement)
    for name in _order(placement.device) if wanted == "auto" else [wanted]:
        candidate = _candidate(name, packed, graphs)
        if candidate is not None:
            candidates[name] = candidate
    if not candidates:
        raise InvalidSetting(
            f"compute.attention is {wanted!r}, which does not work on this device for "
            f"{num_heads} heads x {head_dim} in {placement.precision}"
        )
    times = _measure({name: candidate.run for name, candidate in candidates.items()}, packed)
    graphs.close()
    chosen = fastest(times)
    errors = {name: candidate.error for name, candidate in candidates.items()}
    return AttentionChoice(chosen, candidates[chosen].kernel, times, errors)


def fastest(times: Mapping[str, float]) -> str:
    """The first name, replaced by each later one that is clearly faster than the last kept."""
    kept = next(iter(times))
    for name, time in times.items():
        if time < MARGIN * times[kept]:
            kept = name
    return kept


@dataclass(frozen=True, slots=True)
class _Candidate:
    kernel: Attention
    run: Captured[Tensor]
    error: float


def _order(device: torch.device) -> list[str]:
    names = list(KERNELS)
    if torch.cuda.get_device_capability(device) < HOPPER:
        names.sort(key="flash".__ne__)  # a stable sort: only the first changes
    return names


def _candidate(name: str, packed: Tensor, graphs: Graphs) -> _Candidate | None:
    try:
        kernel = KERNELS[name]()
        error = _distance(kernel(*_heads(packed)), packed)
        run = graphs.capture(_repeated(kernel), (packed,), name)
        error = max(error, _distance(run(packed), packed))
    except (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError) as reason:
        log.debug("attention by %s is not to be had: %s", name, reason)
        return None
    if not error < TOLERANCE:  # NaN too
        log.warning("attention by %s is off by %.3g and is left out", name, error)
        return None
    return _Candidate(kernel, run, error)


def _heads(packed: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value as views of (1, tokens, 3, heads, head_dim)."""
    return packed.transpose(1, 3).unbind(2)


def _repeated(kernel: Attention) -> Callable[[Tensor], Tensor]:
    def repeated(packed: Tensor) -> Tensor:
        heads = _heads(packed)
        for _ in range(NUM_CALLS - 1):
            kernel(*heads)
        return kernel(*heads)

    return repeated


def _distance(found: Tensor, packed: Tensor) -> float:
    """Relative distance to float32 over all heads. Waits for the device."""
    exact = sdpa(*_heads(packed.float()))
    if found.shape != exact.shape or not found.is_contiguous():
        return float("nan")
    return float((found.float() - exact).norm() / exact.norm())


def _measure(runs: Mapping[str, Captured[Tensor]], packed: Tensor) -> dict[str, float]:
    """Median milliseconds per call, taken in turns: a change of the clock affects all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(NUM_ROUNDS):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(packed)
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / NUM_CALLS)
    return {name: round(statistics.median(each), 4) for name, each in times.items()}
