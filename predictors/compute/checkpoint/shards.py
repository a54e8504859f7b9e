"""The tensors of one checkpoint folder: one safetensors file, or several with an index.

Files are mapped, so a tensor takes memory only when it is read. Errors name the file or the tensor,
never the path of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from predictors.compute.checkpoint.folder import shown
from predictors.compute.checkpoint.staging import NUM_READERS, Extent, fill
from predictors.errors import EngineFailed

STEMS = ("model", "diffusion_pytorch_model")  # transformers' and diffusers' names
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


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as described in the file's header. `dtype` is its name in safetensors."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored tensor; `offset` is in bytes from the beginning of the file."""

    handle: Any
    file: Path
    offset: int
    header: Header

    @property
    def dtype(self) -> torch.dtype | None:
        """None if torch has no such dtype."""
        return DTYPES.get(self.header.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape


class Shards:
    """A context manager that keeps the files open. Iterates over the names, file by file."""

    def __init__(self, folder: Path, stems: Sequence[str] = STEMS) -> None:
        self._folder = folder
        self._stems = stems
        self._stack = ExitStack()
        self._tensors: dict[str, _Stored] = {}

    def __enter__(self) -> Shards:
        with ExitStack() as stack:  # closes the files that were opened before a broken one
            for file in self._paths():
                self._tensors |= _tensors_of(file, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._tensors = {}
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def headers(self) -> dict[str, Header]:
        return {name: stored.header for name, stored in self._tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def read(self, name: str) -> Tensor:
        """A tensor on the host, in its stored dtype."""
        tensor: Tensor = self._stored(name).handle.get_tensor(name)
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
            if stored.shape != tuple(target.shape):
                raise EngineFailed(
                    f"tensor {name} has shape {list(stored.shape)}; the config asks for "
                    f"{list(target.shape)}"
                )
            if target.device.type != "cuda" or stored.dtype is None:
                with torch.inference_mode():  # as in `fill`
                    target.copy_(self.read(name))
            else:
                extents.append(Extent(target, stored.file, stored.offset, stored.dtype, name))
        fill(extents, num_readers)

    def _stored(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise EngineFailed(f"the checkpoint's {self._folder.name} has no tensor {name}")
        return self._tensors[name]

    def _paths(self) -> list[Path]:
        for stem in self._stems:
            index, single = (
                self._folder / f"{stem}.safetensors{tail}" for tail in (".index.json", "")
            )
            if index.is_file():
                return [self._shard(name) for name in _listed(index)]
            if single.is_file():
                return [single]
        found = sorted(file.name for file in self._folder.glob("*.safetensors"))
        if found:
            raise EngineFailed(
                f"the checkpoint's {self._folder.name} has {shown(', '.join(found))}, which is not "
                f"read: weights are {' or '.join(f'{stem}.safetensors' for stem in self._stems)}, "
                "or shards with an index; rename them"
            )
        raise EngineFailed(
            f"the checkpoint's {self._folder.name} has no safetensors weights; no other is read"
        )

    def _shard(self, name: str) -> Path:
        # an index is untrusted: it must not lead out of its folder
        if Path(name).name != name or not (self._folder / name).is_file():
            raise EngineFailed(
                f"the checkpoint's {self._folder.name} lacks {Path(name).name}, which its index "
                "names; fetch it again"
            )
        return self._folder / name


def _listed(index: Path) -> list[str]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(file) for file in files})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise EngineFailed(f"{index.parent.name}/{index.name} is not an index of shards") from error


def _tensors_of(file: Path, stack: ExitStack) -> dict[str, _Stored]:
    """The tensors in the header of `file`. safetensors has checked it against the file's length."""
    try:
        handle = stack.enter_context(safe_open(file, framework="pt"))
        with file.open("rb") as opened:  # safetensors' reader has no offsets
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        return {
            name: _Stored(
                handle,
                file,
                8 + length + header[name]["data_offsets"][0],
                Header(header[name]["dtype"], tuple(header[name]["shape"])),
            )
            for name in handle.keys()  # noqa: SIM118 - not a dict
        }
    except (SafetensorError, ValueError, KeyError) as error:
        raise EngineFailed(
            f"{file.parent.name}/{file.name} is broken or cut short ({file.stat().st_size} bytes); "
            "fetch it again"
        ) from error
    except OSError as error:
        raise EngineFailed(f"{file.parent.name}/{file.name} can't be read") from error
