"""The tensors of one checkpoint folder: one safetensors file, or several with an index. Knows no
model and no tensor name.

Files are mapped, not read: a tensor costs memory when it is asked for. Whatever is amiss names the
file or the tensor, never the folder's place on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from predictors.errors import EngineFailed

STEMS = ("model", "diffusion_pytorch_model")  # transformers' and diffusers' names


class Shards:
    """A context manager that holds the files open. `names` are those stored, in file order."""

    def __init__(self, folder: Path, stems: Sequence[str] = STEMS) -> None:
        self._folder = folder
        self._stems = stems
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Shards:
        with ExitStack() as stack:  # closes what was opened before the one that is broken
            for file in self._paths():
                handle = stack.enter_context(_opened(file))
                self._files |= dict.fromkeys(handle.keys(), handle)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._files = {}
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def read(self, name: str) -> Tensor:
        """One tensor on the host, in the dtype it is stored in."""
        if name not in self._files:
            raise EngineFailed(f"the checkpoint's {self._folder.name} has no tensor {name}")
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def _paths(self) -> list[Path]:
        for stem in self._stems:
            index, single = (
                self._folder / f"{stem}.safetensors{tail}" for tail in (".index.json", "")
            )
            if index.is_file():
                return [self._shard(name) for name in _listed(index)]
            if single.is_file():
                return [single]
        raise EngineFailed(
            f"the checkpoint's {self._folder.name} has no safetensors weights; no other is read"
        )

    def _shard(self, name: str) -> Path:
        # an index is data from elsewhere: it may not lead out of its folder
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


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise EngineFailed(
            f"{file.parent.name}/{file.name} is broken or cut short ({file.stat().st_size} bytes); "
            "fetch it again"
        ) from error
