"""Writes a safetensors file tensor by tensor: never more than one of them is in memory, however
large the file becomes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from predictors.compute.checkpoint.headers import Header
from predictors.compute.checkpoint.shards import DTYPES

ALIGNMENT = 8  # of the first tensor, as the format's own library writes it


def write_tensors(
    path: Path, headers: Mapping[str, Header], tensors: Iterable[tuple[str, Tensor]]
) -> int:
    """Write `tensors` in the order, dtypes and shapes of `headers`; returns their bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, header in headers.items():
        start, end = end, end + math.prod(header.shape) * DTYPES[header.dtype].itemsize
        entries[name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    names = iter(headers)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            header = headers[name]
            assert name == next(names)
            assert tensor.dtype == DTYPES[header.dtype]
            assert tuple(tensor.shape) == header.shape
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return end
