"""Which attention kernel runs: measured once at load, on the device and the shape that will serve,
among those that are installed. Never a download. Knows no model.

On Hopper cuDNN's kernel, which torch carries, is about twice as fast as FlashAttention 2 and about
as fast as FlashAttention 3 at a picture's lengths (faster from cold, 6 % slower at the power limit
of an H200); elsewhere it is another. The bits of a result depend on the kernel, so a challenger
must win by a margin that noise does not reach.
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

MARGIN = 0.95  # a challenger's time over the champion's
TOLERANCE = 0.01  # relative distance to float32: bfloat16 keeps eight bits
HOPPER = (9, 0)  # before it FlashAttention 2 comes first
NUM_CALLS = 8  # in one graph: the host's share of a launch is not what is compared
NUM_ROUNDS = 7
FP8_TOLERANCE = 0.1  # of normal values; e4m3 keeps four bits, which makes it 0.054
NUM_CHECKED_TOKENS = 1024

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query, key, value (rows, heads, tokens, head_dim), last dimension contiguous, to (rows, tokens,
heads * head_dim) contiguous. Without mask, scaled by head_dim ** -0.5."""


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own choice; any device, any dtype."""
    return _joined(F.scaled_dot_product_attention(query, key, value))


def _joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # the operator itself: no context manager and no choice per call
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    return _joined(attend(query, key, value, None, False, 0.0, False, False)[0])


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_flash_attention.default
    return _joined(attend(query, key, value, 0.0, False, False)[0])


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return _joined(attend(query, key, value, None, False, 0.0, False)[0])


def _of_package(module: str) -> Attention:
    """A FlashAttention package's function; raises `ImportError` where there is none."""
    attend = _tokens_first(module)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(*(x.transpose(1, 2) for x in (query, key, value)))

    return call


def _tokens_first(module: str) -> Attention:
    """The same over (rows, tokens, heads, head_dim), as the package wants it."""
    attend = importlib.import_module(module).flash_attn_func

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = attend(query, key, value)
        joined: Tensor = (mixed[0] if isinstance(mixed, tuple) else mixed).flatten(2)
        return joined

    return call


def fp8_attention(placement: Placement, head_dim: int) -> Attention | None:
    """Attention over e4m3 (rows, tokens, heads, head_dim) to the joined heads in bfloat16, or None
    where FlashAttention 3 or a Hopper GPU is missing.

    Values are taken as they are, without scales: queries and keys have to be normed before. On an
    H200 at its power limit it takes 0.32 ms for 24 x 128 at 4,608 tokens, cuDNN in bfloat16 0.46.
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


# in the order in which they are tried; the first is kept unless another wins clearly
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
class Choice:
    """The kernel that serves, and what the others took."""

    name: str
    attention: Attention
    milliseconds: Mapping[str, float]
    """Of each that is right on this device, for the shape it was measured on; empty off CUDA."""
    errors: Mapping[str, float]
    """Of each: relative distance to float32."""

    def announce(self, model: str) -> None:
        """Show it in the metrics and the log."""
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
) -> Choice:
    """The fastest kernel that is right and can be captured, for one row of `num_tokens`.

    `wanted` names it instead (default: the placement's); `InvalidSetting` if it does not work
    here. Off CUDA it is torch's own choice, unmeasured. Engine thread; waits for the device for
    about a second.
    """
    wanted = placement.attention if wanted is None else wanted
    if not placement.is_cuda:
        return Choice("sdpa", sdpa, {}, {})
    generator = torch.Generator(placement.device).manual_seed(0)
    shape = (1, num_tokens, 3, num_heads, head_dim)  # as a fused projection leaves it
    packed = torch.randn(shape, generator=generator, dtype=placement.dtype, device=placement.device)
    trials = {}
    graphs = Graphs("attention", placement)
    for name in _order(placement.device) if wanted == "auto" else [wanted]:
        trial = _try(name, packed, graphs)
        if trial is not None:
            trials[name] = trial
    if not trials:
        raise InvalidSetting(
            f"compute.attention is {wanted!r}, which does not work on this device for "
            f"{num_heads} heads x {head_dim} in {placement.precision}"
        )
    times = _race({name: trial.run for name, trial in trials.items()}, packed)
    graphs.close()
    champion = winner(times)
    errors = {name: trial.error for name, trial in trials.items()}
    return Choice(champion, trials[champion].kernel, times, errors)


def winner(times: Mapping[str, float]) -> str:
    """The first name, unless a later one took clearly less; and so on from that."""
    champion = next(iter(times))
    for name, time in times.items():
        if time < MARGIN * times[champion]:
            champion = name
    return champion


@dataclass(frozen=True, slots=True)
class _Trial:
    kernel: Attention
    run: Captured[Tensor]
    error: float


def _order(device: torch.device) -> list[str]:
    names = list(KERNELS)
    if torch.cuda.get_device_capability(device) < HOPPER:
        names.sort(key="flash".__ne__)  # a stable sort: only the first changes
    return names


def _try(name: str, packed: Tensor, graphs: Graphs) -> _Trial | None:
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
    return _Trial(kernel, run, error)


def _heads(packed: Tensor) -> tuple[Tensor, ...]:
    """query, key, value as views of (1, tokens, 3, heads, head_dim)."""
    return packed.transpose(1, 3).unbind(2)


def _repeated(kernel: Attention) -> Callable[[Tensor], Tensor]:
    def repeated(packed: Tensor) -> Tensor:
        heads = _heads(packed)
        for _ in range(NUM_CALLS - 1):
            kernel(*heads)
        return kernel(*heads)

    return repeated


def _distance(found: Tensor, packed: Tensor) -> float:
    """Relative to float32, over all heads; reads the value back."""
    exact = sdpa(*_heads(packed.float()))
    if found.shape != exact.shape or not found.is_contiguous():
        return float("nan")
    return float((found.float() - exact).norm() / exact.norm())


def _race(runs: Mapping[str, Captured[Tensor]], packed: Tensor) -> dict[str, float]:
    """Median milliseconds per call; in turns, so that a change of the clock hits all alike."""
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
