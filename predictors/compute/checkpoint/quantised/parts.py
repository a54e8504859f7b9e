"""Looks up and checks the tensors that a quantised layer is stored as. Only headers are read, and
the few bytes of shapes and JSON texts. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from predictors.compute.checkpoint.folder import UNQUANTISED
from predictors.compute.checkpoint.headers import Header, StoredTensor
from predictors.errors import EngineFailed

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})
NARROW = FLOAT8 | {"I8"}
INPUT_SCALES = ("input_scale", "input_zero_point", "scale_input", "activation_scale")
"""Scales of activations that the author's library quantises. They stay wide here."""
INTEGERS = {"I64": 8, "I32": 4}
MAX_BYTES = 4096  # of a shape or a JSON text


class Parts:
    """The stored tensors of one component. `component` names the part of the model that a tensor
    belongs to, for messages."""

    def __init__(self, stored: Mapping[str, StoredTensor], component: Callable[[str], str]) -> None:
        self.stored = stored
        self._component = component

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def header(self, name: str) -> Header:
        return self.stored[name].header

    def refusal(self, method: str, name: str, why: str) -> EngineFailed:
        return EngineFailed(
            f"{self._component(name)} is quantised ({method}; tensor {name}), but {why}; compare "
            "with the original, or take the unquantised folder"
        )

    def need(self, method: str, name: str) -> str:
        """`name`, which must be stored."""
        if name not in self.stored:
            raise EngineFailed(
                f"{self._component(name)} is quantised ({method}), but tensor {name} is missing: "
                f"fetch the checkpoint again, or {UNQUANTISED}"
            )
        return name

    def optional(self, name: str) -> str | None:
        return name if name in self.stored else None

    def need_dtype(self, method: str, name: str, dtypes: Collection[str]) -> str:
        """`name`, which must be stored as one of `dtypes`."""
        found = self.header(self.need(method, name)).dtype
        if found not in dtypes:
            raise self.refusal(method, name, f"it is {found}, not {' or '.join(sorted(dtypes))}")
        return name

    def matrix(self, method: str, name: str) -> tuple[int, int]:
        shape = self.header(name).shape
        if len(shape) != 2 or not all(shape):
            raise self.refusal(method, name, f"its shape {list(shape)} is not that of a matrix")
        return shape[0], shape[1]

    def check_shape(self, method: str, name: str, wanted: tuple[int, ...]) -> None:
        found = self.header(name).shape
        if found != wanted:
            raise self.refusal(method, name, f"its shape is {list(found)}, not {list(wanted)}")

    def check_length(self, method: str, name: str, wanted: int) -> None:
        found = self.header(name).shape
        if math.prod(found) != wanted:
            raise self.refusal(method, name, f"it has {math.prod(found)} values, not {wanted}")

    def group_size(self, method: str, scales: str, columns: int, groups: int) -> int:
        """Columns per group, all of one size."""
        if columns % groups:
            raise self.refusal(
                method, scales, f"{columns} columns can't be cut into {groups} groups"
            )
        return columns // groups

    def inputs(self, stem: str) -> tuple[str, ...]:
        """The stored scales of the activations of a layer, each of which must be one number."""
        found = tuple(n for leaf in INPUT_SCALES if (n := f"{stem}.{leaf}") in self.stored)
        for name in found:
            self.check_length("with scales of activations", name, 1)
        return found

    def read_shape(self, method: str, name: str) -> tuple[int, ...]:
        """The whole numbers that a tensor holds: the shape of a matrix."""
        header = self.header(name)
        size = INTEGERS.get(header.dtype)
        if size is None or header.shape != (2,):
            raise self.refusal(
                method, name, f"it is {header.dtype} {list(header.shape)}, not a shape"
            )
        data = self._read(method, name)
        found = tuple(int.from_bytes(data[i : i + size], "little", signed=True) for i in (0, size))
        if not is_shape(list(found)):
            raise self.refusal(method, name, f"it holds {list(found)}, not a shape")
        return found

    def read_object(self, method: str, name: str) -> dict[str, Any]:
        """The JSON object that a tensor's bytes spell."""
        try:
            found = json.loads(self._read(method, name).decode())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.refusal(method, name, "its bytes are not a JSON object")
        return found

    def _read(self, method: str, name: str) -> bytes:
        stored = self.stored[name]
        if stored.num_bytes > MAX_BYTES:
            raise self.refusal(
                method, name, f"it has {stored.num_bytes} bytes, more than {MAX_BYTES}"
            )
        try:
            with stored.file.open("rb") as opened:
                opened.seek(stored.offset)
                return opened.read(stored.num_bytes)
        except OSError as error:
            raise EngineFailed(
                f"{stored.file.parent.name}/{stored.file.name} can't be read"
            ) from error


def is_count(value: object) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and isinstance(value, int) and 0 < value < 2**40


def is_shape(value: object) -> bool:
    """True for 1 to 5 lengths whose product is not absurd."""
    is_list = isinstance(value, list) and 1 <= len(value) <= 5 and all(map(is_count, value))
    return is_list and isinstance(value, list) and math.prod(value) < 2**40
