"""The factor of each layer of an adapter: alpha / rank, from a tensor beside the layer, PEFT's
`adapter_config.json`, or the same values in the header of diffusers' files. Without torch.

An option of PEFT that changes what the weights mean is refused by name, whether it has been heard
of or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from predictors.compute.checkpoint.strict_file import named, parse_object
from predictors.errors import InvalidRequest

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
METADATA = "lora_adapter_metadata"
"""Header entry of diffusers' files with PEFT's config, each name with its part in front."""
MAX_ALPHA = 1e6
MAX_PATTERNS = 10_000
INFORMATIVE = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "lora_dropout", "qalora_group_size", "init_lora_weights", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "megatron_core", "runtime_config", "parent_library",
})  # fmt: skip
"""Fields of PEFT's config that do not change what stored weights mean, `init_lora_weights` but for
some values."""
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the base weights as they are."""
READ_FIELDS = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"}
)
_LITERAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.")


@dataclass(frozen=True, slots=True)
class Patterns:
    """Values of some layers, by the ends of their paths. The first pattern that fits counts."""

    exact: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By the whole path: the pattern's position, and its value."""
    ends: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """The same by some last parts of a path."""

    def find(self, path: str) -> float | None:
        found = [self.exact[path]] if path in self.exact else []
        at = 0
        while at >= 0:
            if (known := self.ends.get(path[at:])) is not None:
                found.append(known)
            at = path.find(".", at) + 1 or -1
        return min(found)[1] if found else None


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """PEFT's config of one adapter, as far as it says what stored weights mean."""

    where: str
    rank: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    is_stabilised: bool
    """The factor is alpha / sqrt(rank) (`use_rslora`)."""

    def factor(self, path: str, rank: int) -> float:
        """Of the layer at `path`, whose tensors have this rank. Raises `InvalidRequest` if the
        config gives another one."""
        wanted = self.ranks.find(path)
        wanted = self.rank if wanted is None else wanted
        if wanted != rank:
            raise InvalidRequest(
                f"{self.where} gives {named(path)} the rank {wanted:g}; its tensors have {rank}"
            )
        alpha = self.alphas.find(path)
        alpha = self.alpha if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.is_stabilised else rank)


def read_peft_config(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """The config in PEFT's fields; raises `InvalidRequest` naming the field that is not served."""
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise InvalidRequest(f"{where}: peft_type is {ascii(kind)[:40]}; served is 'LORA'")
    if values.get("use_dora"):
        raise InvalidRequest(f"{where}: it is a DoRA adapter (use_dora), which is not served")
    if values.get("modules_to_save"):
        raise InvalidRequest(f"{where}: full weights (modules_to_save) are not served")
    if values.get("bias", "none") != "none":
        raise InvalidRequest(f"{where}: bias is {ascii(values['bias'])[:40]}; served is 'none'")
    start = values.get("init_lora_weights")
    if not any(start is each or start == each for each in PLAIN_STARTS):
        raise InvalidRequest(
            f"{where}: init_lora_weights is {ascii(start)[:40]}, which also changes the base "
            "weights: convert the adapter to a plain LoRA with PEFT"
        )
    for name, value in values.items():
        if name not in READ_FIELDS and name not in INFORMATIVE and value not in _OFF:
            raise InvalidRequest(f"{where}: {named(name)} is {ascii(value)[:40]}, not served")
    return AdapterConfig(
        where=where,
        rank=int(_number(values, "r", where, 8, whole=True)),
        alpha=_number(values, "lora_alpha", where, 8),
        ranks=_patterns(values, "rank_pattern", where),
        alphas=_patterns(values, "alpha_pattern", where),
        is_stabilised=_flag(values, "use_rslora", where),
    )


_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


def read_metadata(metadata: Mapping[str, str], where: str) -> dict[str, AdapterConfig]:
    """The configs by part in the header of a file of diffusers; empty without any."""
    if METADATA not in metadata:
        return {}
    where = f"{METADATA} of {where}"
    parts: dict[str, dict[str, Any]] = {}
    for name, value in parse_object(metadata[METADATA].encode(), where).items():
        part, _, own = name.partition(".")
        parts.setdefault(part, {})[own] = value
    return {part: read_peft_config(values, f"{where}, {part}") for part, values in parts.items()}


def _number(
    values: Mapping[str, Any], name: str, where: str, default: float, *, whole: bool = False
) -> float:
    value = values.get(name, default)
    if not _is_factor(value) or (whole and value != int(value)):
        what = "whole number" if whole else "number"
        raise InvalidRequest(
            f"{where}: {name} is {ascii(value)[:40]}, not a {what} above 0 and at most "
            f"{MAX_ALPHA:g}"
        )
    return float(value)


def _flag(values: Mapping[str, Any], name: str, where: str) -> bool:
    value = values.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {name} is {ascii(value)[:40]}, not true or false")
    return bool(value)


def _is_factor(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= MAX_ALPHA  # type: ignore[operator]


def _patterns(values: Mapping[str, Any], name: str, where: str) -> Patterns:
    """PEFT takes each key for a regular expression of a path's end. Those that are a path as it is
    written are read, all that trainers write; others are refused."""
    found = values.get(name) or {}
    if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
        raise InvalidRequest(f"{where}: {name} is no object of at most {MAX_PATTERNS} numbers")
    exact: dict[str, tuple[int, float]] = {}
    ends: dict[str, tuple[int, float]] = {}
    for position, (key, value) in enumerate(found.items()):
        path = key.removeprefix("^").replace("\\.", ".")
        if not path or not _LITERAL.issuperset(path):
            raise InvalidRequest(
                f"{where}: {name} has {named(key)}, a regular expression; read are names of layers"
            )
        if not _is_factor(value) or (name == "rank_pattern" and value != int(value)):
            raise InvalidRequest(
                f"{where}: {name} gives {named(key)} {ascii(value)[:40]}, not a number above 0"
            )
        target = exact if key.startswith("^") else ends
        target.setdefault(path, (position, float(value)))
    return Patterns(exact, ends)
