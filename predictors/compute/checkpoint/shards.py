"""The tensors of one checkpoint folder: one safetensors file, or several with an index.

Files are mapped, so a tensor takes memory only when it is read. Errors name the file or the tensor,
never the path of the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from predictors.compute.checkpoint.headers import Header, StoredTensor, headers_of, read_headers
from predictors.compute.checkpoint.staging import NUM_READERS, Extent, fill
from predictors.errors import EngineFailed

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's dtypes by their names in safetensors. Tensors of other types are read one by one."""


class Source(Protocol):
    """Stored tensors by name, as a model's modules are filled from."""

    def __contains__(self, name: str) -> bool:
        """True if it is stored."""

    def shape(self, name: str) -> Sequence[int]:
        """The shape of one tensor."""

    def copy_into(self, pairs: Iterable[tuple[Tensor, str]]) -> None:
        """Copy each (target, stored name), any dtype; `EngineFailed` for another shape."""


class Shards:
    """A context manager that keeps the files open. Iterates over the names, file by file.

    `variant` is the wanted one of the weights files (see `weight_files`).
    """

    def __init__(self, folder: Path, variant: str = "") -> None:
        self._folder = folder
        self._variant = variant
        self._stack = ExitStack()
        self._tensors: dict[str, StoredTensor] = {}
        self._handles: dict[Path, Any] = {}

    def __enter__(self) -> Shards:
        tensors = read_headers(self._folder, self._variant)
        with ExitStack() as stack:  # closes the files that were opened before a broken one
            for file in dict.fromkeys(stored.file for stored in tensors.values()):
                self._handles[file] = stack.enter_context(safe_open(file, framework="pt"))
            self._stack = stack.pop_all()
        self._tensors = tensors
        return self

    def __exit__(self, *exc: object) -> None:
        self._tensors, self._handles = {}, {}
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def headers(self) -> dict[str, Header]:
        return headers_of(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).header.shape

    def read(self, name: str) -> Tensor:
        """A tensor on the host, in its stored dtype."""
        tensor: Tensor = self._handles[self._stored(name).file].get_tensor(name)
        return tensor

    def copy_into(
        self, pairs: Iterable[tuple[Tensor, str]], num_readers: int = NUM_READERS
    ) -> None:
        """Fill each target with the stored tensor of that name.

        A target has the stored shape and any dtype, and may be a view. All targets are on one
        device. On CUDA several threads read (see `staging.fill`), and work launched later on the
        current stream sees the values. Raises `EngineFailed` naming a tensor that is missing, has
        another shape or can't be read.
        """
        extents = []
        for target, name in pairs:
            stored = self._stored(name)
            shape, dtype = stored.header.shape, DTYPES.get(stored.header.dtype)
            if shape != tuple(target.shape):
                raise EngineFailed(
                    f"tensor {name} has shape {list(shape)}; the config asks for "
                    f"{list(target.shape)}"
                )
            if target.device.type != "cuda" or dtype is None:
                with torch.inference_mode():  # as in `fill`
                    target.copy_(self.read(name))
            else:
                extents.append(Extent(target, stored.file, stored.offset, dtype, name))
        fill(extents, num_readers)

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise EngineFailed(f"the checkpoint's {self._folder.name} has no tensor {name}")
        return self._tensors[name]
