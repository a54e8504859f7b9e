"""The kinds of quantised layers, by what is stored for each: narrow or packed values, scales, zero
points. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One weight that is stored in parts."""

    name: str
    """Of the weight that the model reads."""
    shape: tuple[int, ...]
    """Of the weight that the model reads."""
    method: str
    """As messages call it."""
    owners: tuple[str, ...]
    """Methods that a config may name over it."""
    parts: Mapping[str, str]
    """Stored names by their role."""
    unread: tuple[str, ...] = ()
    """Stored names that do not change the weight."""
    narrows_inputs: bool = False
    """True if the author's library quantises the layer's input, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledLayer(Layer):
    """float8 or int8 values, less zero points if there are any, times scales over `divisor`. Each
    scale is for `block` rows and columns of the weight as a matrix."""

    block: tuple[int, int]
    divisor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayer(Layer):
    """Integers of `bits` bits in int32 words, less zero points, times scales.

    Both are per row and group of `group_size` columns; with None, `g_idx` has the group of each
    column. `zero` is the zero point where none are stored, and what is added to those that are
    stored less it.
    """

    bits: int
    group_size: int | None
    zero: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedLayer(PackedLayer):
    """compressed-tensors: rows of packed columns; zero points are packed by rows, or int8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqLayer(PackedLayer):
    """AWQ: the transposed weight, eight output features in a word, in an order of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqLayer(PackedLayer):
    """GPTQ: the transposed weight, input features packed in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayer(Layer):
    """bitsandbytes: 4-bit indices of a table, times the largest magnitude of each `block` of
    values. With `nested_block`, those are indices of a table, too, and `offset` is added."""

    block: int
    nested_block: int = 0
    offset: float = 0.0
