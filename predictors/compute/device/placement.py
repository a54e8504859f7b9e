"""Device, dtype and compiler of the process, chosen once from the settings and frozen, and copies
between host and device.

The copies block neither: they are pinned and asynchronous on CUDA, on the current stream, so a
kernel launched after `to_device` sees the data. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from predictors import __version__, metrics
from predictors.compute.compile.compile_cache import keep_compiled_code, kept_in
from predictors.errors import EngineFailed
from predictors.settings import ComputeSettings, InvalidSetting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DAMAGED = "the weights are damaged, or the dtype is too narrow for them (PREDICTORS_COMPUTE_DTYPE)"


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and dtype of modules, and the compiler. `compile` is `off`, `aot_eager` or `inductor`;
    `off` means no CUDA graphs either."""

    device: torch.device
    dtype: torch.dtype
    compile: str
    attention: str = "auto"
    """Name of the attention kernel on CUDA, or `auto`; see `choose_attention`."""
    cache: Path | None = None
    """Folder for bundles of compiled code (see `Bundle`), or None."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def place(settings: ComputeSettings) -> Placement:
    """The placement for `settings`. Raises `InvalidSetting` if this machine does not have it.

    Also sets torch's intra-op threads, so it must be called before the first tensor operation. Any
    thread.
    """
    device = chosen_device(settings)
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    is_cuda = device.type == "cuda"
    dtype = "bfloat16" if is_cuda else "float32"
    compiler = "inductor" if is_cuda else "off"
    return Placement(
        device=device,
        dtype=DTYPES[dtype if settings.dtype == "auto" else settings.dtype],
        compile=compiler if settings.compile == "auto" else settings.compile,
        attention=settings.attention,
        cache=kept_in(),
    )


def keep_code(settings: ComputeSettings, environ: MutableMapping[str, str]) -> None:
    """Apply `compute.cache_dir`, see `keep_compiled_code`. Called with the process's environment,
    before the first `place`. Raises `InvalidSetting` as `place` does."""
    if settings.cache_dir:
        keep_compiled_code(settings.cache_dir, chosen_device(settings), environ)


def announce(model: str, placement: Placement) -> None:
    device = placement.device.type
    labels = (model, __version__, torch.__version__, device, placement.precision)
    metrics.build_info.labels(*labels).set(1)


def is_device_lost(error: BaseException) -> bool:
    """The CUDA context is lost (illegal address, device assert, ECC): a retry is useless."""
    return isinstance(error, torch.AcceleratorError)


def chosen_device(settings: ComputeSettings) -> torch.device:
    """The device, which is not initialised. Raises `InvalidSetting` as `place` does."""
    name = settings.device
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSetting(
            f"compute.device must be auto, cpu, cuda or cuda:N, not {name!r}"
        ) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise InvalidSetting(f"compute.device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise InvalidSetting(
            f"compute.device is {name!r}, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", device.index or 0)


def to_device(tensor: Tensor, placement: Placement, dtype: torch.dtype | None = None) -> Tensor:
    """A host tensor of any shape on the device, in `dtype` if given. The host does not wait."""
    if not placement.is_cuda:
        return tensor if dtype is None else tensor.to(dtype)
    # torch's pinned allocator keeps the block until the copy has run
    moved = tensor.pin_memory().to(placement.device, non_blocking=True)
    return moved if dtype is None else moved.to(dtype)


def staging_memory(shape: Sequence[int], dtype: torch.dtype, placement: Placement) -> Tensor:
    """Host memory, not initialised, from which a copy to the device does not wait."""
    return torch.empty(shape, dtype=dtype, pin_memory=placement.is_cuda)


class LaunchMark:
    """A point in the work that was launched."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event

    @property
    def is_passed(self) -> bool:
        """True once the device has run all work before it. Never on the CPU, which runs nothing
        meanwhile."""
        return self._event is not None and bool(self._event.query())


def mark_launched(placement: Placement) -> LaunchMark:
    """Mark the end of what is launched on the current stream by now."""
    if not placement.is_cuda:
        return LaunchMark(None)
    event = torch.cuda.Event()
    event.record()
    return LaunchMark(event)


class HostCopy:
    """A copy to the host in flight. `result` waits for this copy only, not for later kernels."""

    def __init__(self, tensor: Tensor, event: torch.cuda.Event | None) -> None:
        self._tensor = tensor
        self._event = event

    @property
    def is_done(self) -> bool:
        """True if `result` would not wait."""
        return self._event is None or bool(self._event.query())

    def result(self) -> Tensor:
        """The data on the host. Call it after everything else of the step is launched."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def to_host_async(tensor: Tensor) -> HostCopy:
    """Start a copy of a device tensor to pinned memory. On the CPU the result is `tensor`."""
    if tensor.device.type != "cuda":
        return HostCopy(tensor, None)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return HostCopy(host, event)


def check_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Raise `EngineFailed` for NaN or infinity. Waits for the device: for warm-up only."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise EngineFailed(f"{what} are not finite; {DAMAGED}")
