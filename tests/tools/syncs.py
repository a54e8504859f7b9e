"""Counts, or forbids, operations that make the GPU wait for the host or the host for the GPU.

Counted, on the CPU too, are: reading a value (`item`, `bool`, `tolist`, `numpy`), data-dependent
shapes (`nonzero`, masks), moves between devices, and tensors made from Python numbers (on a GPU
each is a pageable copy). Forbidding needs a GPU: torch checks where it is about to wait.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    "aten::_local_scalar_dense",
    "aten::item",  # in inference mode composite operators arrive whole
    "aten::allclose",
    "aten::argwhere",
    "aten::nonzero_numpy",
    "aten::where",  # of one argument: `nonzero`
    "aten::repeat_interleave.self_Tensor",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
    "aten::bincount",
}
_UPLOADS = {"aten::lift_fresh"}  # torch.tensor([...]), torch.as_tensor(...)
_MOVES = {"aten::_to_copy", "aten::to", "aten::copy_"}
# these read host memory without going through the dispatcher
_DIRECT = {"tolist", "numpy", "__array__", "cpu"}


class SyncCount(Counter[str]):
    """Occurrences by operator name."""

    @property
    def syncs(self) -> int:
        return sum(self.values())


class _Operators(TorchDispatchMode):
    def __init__(self, found: SyncCount) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name
        full = name if not func._schema.overload_name else f"{name}.{func._schema.overload_name}"
        result = func(*args, **(kwargs or {}))
        if full in _READS or name in _UPLOADS or (name in _MOVES and _crosses(name, args, result)):
            self._found[full] += 1
        elif name in {"aten::index", "aten::index_put_"} and _has_mask(args[1]):
            self._found[f"{full} with a mask"] += 1
        return result


class _Methods(TorchFunctionMode):
    def __init__(self, found: SyncCount) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _DIRECT:
            self._found[f"Tensor.{name}"] += 1
        return func(*args, **(kwargs or {}))


def _crosses(name: str, args: tuple[Any, ...], result: torch.Tensor) -> bool:
    source = args[1] if name == "aten::copy_" else args[0]
    return bool(source.device != result.device)


def _has_mask(indices: Any) -> bool:
    return any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in indices)


@contextmanager
def count_host_syncs() -> Iterator[SyncCount]:
    """Count on the calling thread while the block runs: `with count_host_syncs() as found: ...;
    assert not found`."""
    found = SyncCount()
    with _Methods(found), _Operators(found):
        yield found


@contextmanager
def no_host_syncs() -> Iterator[None]:
    """Raise `RuntimeError` where the host would wait for a GPU, while the block runs.

    It detects `item`, `cpu`, `nonzero`, masks, `torch.tensor([...], device="cuda")` and
    `Stream.synchronize`. Measured on an H200 with torch 2.11, it does not detect
    `Event.synchronize`, `torch.cuda.synchronize`, and copies with `non_blocking=True`, even of
    pageable memory. Graph replays never wait. torch's mode is process-wide: a sync on another
    thread raises there, and the blocks of two threads must not overlap. Raises `RuntimeError`
    without a GPU.
    """
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_mode("error")
    try:
        yield
    finally:
        _set_sync_mode(before)


def _set_sync_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        # torch warns once per process that it does not detect everything
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode(mode)
