"""Reads the folder of a PEFT adapter of a chat model, or refuses it naming the tensor. Without
torch, so that `check` describes an adapter in a moment.

Every tensor and every option is accounted for. Modules may have the names of any release of
transformers, with or without PEFT's prefix.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictors.chat.tensors import HEAD, Shapes, component_of, hub_name
from predictors.compute.checkpoint.adapter_files import find_files
from predictors.compute.checkpoint.adapter_scales import (
    MAX_CONFIG_BYTES,
    AdapterConfig,
    read_peft_config,
)
from predictors.compute.checkpoint.headers import Header
from predictors.compute.checkpoint.strict_file import (
    LARGEST,
    READ,
    StrictFile,
    named,
    parse_object,
    read_small_file,
)
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest

Array = NDArray[np.float32]
PREFIX = "base_model.model."
DOWN, UP = "lora_A", "lora_B"
REASONS = (
    ("lora_magnitude_vector", "DoRA is not served; merge the adapter into its model"),
    ("lora_embedding", "embeddings are not adapted; train the adapter on linears alone"),
    ("hada_", "LoHa is not served; convert it to LoRA"),
    ("lokr_", "LoKr is not served; convert it to LoRA"),
    ("ia3_", "IA3 is not served; train a LoRA"),
    ("oft_", "OFT is not served; convert it to LoRA"),
    ("vera_", "VeRA is not served; convert it to LoRA"),
    ("modules_to_save", "whole weights are not replaced (modules_to_save); merge the adapter"),
    ("trainable_tokens", "embeddings are not adapted (trainable_token_indices)"),
    (".bias", "biases are not adapted; train the adapter with bias none"),
)
"""By a part of a tensor's name that is neither matrix of a LoRA: why it is not served."""
WHOLE = "it is no part of a LoRA, and whole weights are not replaced (modules_to_save)"


@dataclass(frozen=True, slots=True)
class LinearArrays:
    """The change of one linear: `down` (rank, in_features), and `up` (out_features, rank) with the
    adapter's scale."""

    down: Array
    up: Array


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """An adapter as read. `changes` are by the linear's name as the hub has it, without `.weight`;
    `digest` is of them, the same in every spelling."""

    file: str
    digest: str
    changes: Mapping[str, LinearArrays]

    def summary(self, name: str) -> AdapterSummary:
        parts = Counter(component_of(linear).removeprefix("the ") for linear in self.changes)
        return AdapterSummary(
            name=name,
            file=self.file,
            format="PEFT",
            digest=self.digest,
            rank=max(len(change.down) for change in self.changes.values()),
            linears=dict(parts),
            num_values=sum(x.down.size + x.up.size for x in self.changes.values()),
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """The stored names of one linear's two matrices, and its module's without PEFT's prefix."""

    module: str
    down: str
    up: str


def read_peft_adapter(
    path: Path, linears: Shapes, max_rank: int, root: Path | None = None
) -> PeftAdapter:
    """The adapter at `path`, whose links may lead into `root` only. `linears` are the model's, see
    `adaptable_linears`.

    Raises `InvalidRequest` naming a tensor or option that is not served, does not fit the model or
    is damaged. Headers are checked before values are read. Any thread.
    """
    files = find_files(path, root)
    if files.config is None:
        raise InvalidRequest(f"{files.name} has no adapter_config.json beside it, as PEFT saves it")
    raw = read_small_file(files.config, MAX_CONFIG_BYTES)
    config = read_peft_config(parse_object(raw, files.config.name), files.config.name)
    changes: dict[str, LinearArrays] = {}
    with StrictFile(files.weights, files.name) as file:
        pairs = _pairs(file.headers)
        for linear, pair in pairs.items():
            _check_pair(linear, pair, file.headers, linears, max_rank)
        for linear, pair in sorted(pairs.items()):
            changes[linear] = _change(pair, file, config)
    return PeftAdapter(files.name, _digest(changes), changes)


# -- names -----------------------------------------------------------------------------------------
def linear_name(module: str) -> str:
    """The hub's name of a linear that is stored as `module`."""
    name = hub_name(module)
    inner = "language_model.layers."  # of the model without its head
    return f"model.layers.{name.removeprefix(inner)}" if name.startswith(inner) else name


def _pairs(stored: Mapping[str, Header]) -> dict[str, _Pair]:
    """The matrices by linear. Raises `InvalidRequest` for a tensor that is neither of the two, and
    for one without the other."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    adapters: set[str] = set()
    for key in stored:
        module, kind, adapter = _split(key)
        adapters.add(adapter)
        other = found.setdefault((linear_name(module), kind), (key, module))
        if other[0] != key:
            raise InvalidRequest(f"it holds one tensor twice: {named(other[0])} and {named(key)}")
    if len(adapters) > 1:
        raise InvalidRequest(f"it holds several adapters: {named(', '.join(sorted(adapters)))}")
    if not found:
        raise InvalidRequest("it holds no tensors")
    for (linear, kind), (key, _) in found.items():
        missing = UP if kind == DOWN else DOWN
        if (linear, missing) not in found:
            raise InvalidRequest(f"tensor {named(key)} has no {missing} beside it")
    return {
        linear: _Pair(module, key, found[linear, UP][0])
        for (linear, kind), (key, module) in found.items()
        if kind == DOWN
    }


def _split(key: str) -> tuple[str, str, str]:
    """Module, kind of matrix and adapter's name of a stored tensor: `M.lora_A.weight`, or with a
    name before `weight`."""
    parts = key.removeprefix(PREFIX).split(".")
    at = next((i for i, part in enumerate(parts) if part in (DOWN, UP)), 0)
    tail = parts[at + 1 :]
    if not at or tail[-1:] != ["weight"] or len(tail) > 2:
        why = next((reason for part, reason in REASONS if part in key), WHOLE)
        raise InvalidRequest(f"tensor {named(key)}: {why}")
    return ".".join(parts[:at]), parts[at], "".join(tail[:-1])


# -- shapes and values -----------------------------------------------------------------------------
def _check_pair(
    linear: str, pair: _Pair, headers: Mapping[str, Header], linears: Shapes, max_rank: int
) -> None:
    """Raise `InvalidRequest` naming the tensor that does not fit."""
    stored = linears.get(linear)
    if stored is None:
        is_head = linear == HEAD.removesuffix(".weight")
        why = "the head is not adapted" if is_head else f"the model has no linear {named(linear)}"
        raise InvalidRequest(f"tensor {named(pair.down)}: {why}")
    rank = next(iter(headers[pair.down].shape), 0)
    ones = (1,) * (len(stored) - 2)
    for key, wanted in (
        (pair.down, (rank, *stored[1:])),
        (pair.up, (stored[0], rank, *ones)),
    ):
        if headers[key].dtype not in READ:
            served = ", ".join(READ)
            raise InvalidRequest(f"tensor {named(key)} is {headers[key].dtype}; read are {served}")
        if headers[key].shape != wanted:
            raise InvalidRequest(
                f"tensor {named(key)} has shape {list(headers[key].shape)}; this model and rank "
                f"{rank} ask for {list(wanted)}"
            )
    if not 1 <= rank <= max_rank:
        raise InvalidRequest(
            f"tensor {named(pair.down)} has rank {rank}; this server takes 1 to {max_rank} "
            "(setting qwen_vl.lora_max_rank)"
        )


def _change(pair: _Pair, file: StrictFile, config: AdapterConfig) -> LinearArrays:
    """A convolution over two equal frames is folded into one."""
    down, up = file.read(pair.down), file.read(pair.up)
    if down.ndim > 2:
        down, up = down.sum(2).reshape(len(down), -1), up.reshape(len(up), -1)
    scale = config.factor(pair.module, len(down))
    with np.errstate(over="ignore", invalid="ignore"):
        up = up * np.float32(scale)
    largest = float(np.abs(up).max())
    if not largest <= LARGEST:
        raise InvalidRequest(
            f"tensor {named(pair.up)} times its factor {scale:.3g} holds {largest:.3g}; trained "
            f"adapters are far below {LARGEST:.0e}: the file or lora_alpha is damaged"
        )
    return LinearArrays(np.ascontiguousarray(down), up)


def _digest(changes: Mapping[str, LinearArrays]) -> str:
    """SHA-256 of all values, in hexadecimal digits."""
    found = hashlib.sha256()
    for linear, change in changes.items():
        for part in (change.down, change.up):
            found.update(repr((linear, part.shape)).encode())
            found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()
