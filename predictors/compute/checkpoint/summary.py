"""The content of a checkpoint folder, and the device memory that each way to serve it takes: plain
values, read from configs and headers of files without torch.

Each model package makes a `FolderSummary`; the verb `check` prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from predictors.compute.checkpoint.headers import StoredTensor, read_file_headers
from predictors.errors import EngineFailed
from predictors.settings import Settings

CONTEXT_BYTES = 2**30
"""Taken by the CUDA context, loaded kernels and unused ends of the allocator's blocks: not measured
apart, an allowance."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of one value, by the names of safetensors and of the setting `compute.dtype`."""
NO_FP8 = "this card does not multiply fp8 (compute capability 8.9 and later do)"
MOST_FILES = 200  # of a folder that is refused, and of the folders in it


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The GPU to judge for. None: not known."""

    memory_bytes: int | None = None
    has_fp8: bool | None = None
    """It multiplies e4m3 (compute capability 8.9 or later)."""
    name: str = ""

    def within(self, fraction: float) -> CardFacts:
        """This card with that part of its memory, for a model beside others; 0 is all of it."""
        if not fraction or self.memory_bytes is None:
            return self
        return replace(self, memory_bytes=int(fraction * self.memory_bytes))


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One component of a folder. `parameters` are those that are served, 0 if that is not known;
    `num_bytes` all stored."""

    name: str
    kind: str
    parameters: int
    num_bytes: int
    dtypes: Mapping[str, int]
    """Stored values by dtype, by safetensors' names, the most frequent first."""
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class ServingOption:
    """One way to serve a folder, and the device memory it takes."""

    name: str
    settings: Mapping[str, str]
    """Environment variables that choose it."""
    num_bytes: Mapping[str, int]
    """By purpose; together what it takes."""
    loading_bytes: int = 0
    """The most that is held while loading, where that may be more."""
    is_chosen: bool = False
    """The settings choose it."""
    refused: str = ""
    """Why it is not possible on this card or of this folder; else empty."""
    fits: bool | None = None
    """None: the memory is not known."""
    advice: str = ""
    """A setting that helps, if it does not fit."""
    detail: Mapping[str, int] = field(default_factory=dict)
    """Further numbers, such as tokens of the KV cache."""

    @property
    def total_bytes(self) -> int:
        return sum(self.num_bytes.values())


@dataclass(frozen=True, slots=True)
class FolderSummary:
    """A folder that is served."""

    architecture: str
    task: str
    """Name of the task's settings: `flux` or `qwen_vl`."""
    parts: tuple[PartSummary, ...]
    options: tuple[ServingOption, ...]
    notes: tuple[str, ...] = ()
    """Sentences about what is served otherwise than one may think."""
    memory_fraction: float = 0.0
    """Part of the card's memory that `options` are judged for; 0 is all of it."""


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """An adapter (LoRA) that fits to a checkpoint."""

    name: str
    file: str
    """Name of the file or folder, without its path."""
    format: str
    """Tool whose spelling its tensors have."""
    digest: str
    """Of the changes, in hexadecimal digits: the same in every format."""
    rank: int
    """The largest."""
    linears: Mapping[str, int]
    """Number that it changes, by part of the checkpoint."""
    num_values: int
    """Of all changes."""


def summarise_part(
    name: str,
    kind: str,
    stored: Mapping[str, StoredTensor],
    parameters: int,
    quantisation: str = "",
) -> PartSummary:
    counts: Counter[str] = Counter()
    for tensor in stored.values():
        counts[tensor.header.dtype] += num_values(tensor.header.shape)
    return PartSummary(
        name=name,
        kind=kind,
        parameters=parameters,
        num_bytes=sum(tensor.num_bytes for tensor in stored.values()),
        dtypes=dict(counts.most_common()),
        quantisation=quantisation,
    )


def stored_parts(folder: Path) -> tuple[PartSummary, ...]:
    """The safetensors files of any folder and those one level below, as far as they can be read."""
    parts = []
    for place in (folder, *sorted(_folders_in(folder))):
        stored: dict[str, StoredTensor] = {}
        for file in sorted(place.glob("*.safetensors"))[:MOST_FILES]:
            with suppress(EngineFailed, OSError):
                stored |= read_file_headers(file)
        if stored:
            name = "." if place is folder else place.name
            parts.append(summarise_part(name, "", stored, 0))
    return tuple(parts)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if each.is_dir()][:MOST_FILES]
    except OSError:
        return []


def card_dtype(settings: Settings) -> str:
    """The dtype of weights on a GPU."""
    return "bfloat16" if settings.compute.dtype == "auto" else settings.compute.dtype


def assignments(settings: Mapping[str, str]) -> str:
    """Environment variables as a shell takes them."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"


def num_values(shape: Iterable[int]) -> int:
    return prod(shape)
