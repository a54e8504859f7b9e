"""The numbers of a FLUX.1 folder's text encoders, from configs with their defaults filled in, read
as transformers' config classes read them. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictors.compute.checkpoint.folder import is_real, shown
from predictors.errors import EngineFailed

ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh",
)  # fmt: skip
"""By transformers' names."""


@dataclass(frozen=True, slots=True)
class ClipShape:
    """`end_token` is the id at whose first place the pooled state is read."""

    vocab: int
    dim: int
    mlp: int
    layers: int
    heads: int
    positions: int
    activation: str
    eps: float
    end_token: int


@dataclass(frozen=True, slots=True)
class T5Shape:
    """`head_dim` times `heads` need not be `dim`; `buckets` and `max_distance` are those of the
    relative positions."""

    vocab: int
    dim: int
    mlp: int
    layers: int
    heads: int
    head_dim: int
    buckets: int
    max_distance: int
    is_gated: bool
    activation: str
    eps: float


def clip_shape(config: Mapping[str, Any]) -> ClipShape:
    """Raises `EngineFailed` for numbers that don't fit together or are not served."""
    where = "text_encoder/config.json"
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    if dim % heads:
        raise EngineFailed(f"{where}: hidden_size {dim} is not a multiple of {heads} heads")
    end = config["eos_token_id"]
    if isinstance(end, bool) or not isinstance(end, int):
        raise EngineFailed(f"{where}: eos_token_id is {shown(end)}, not the id of one token")
    return ClipShape(
        vocab=config["vocab_size"],
        dim=dim,
        mlp=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        positions=config["max_position_embeddings"],
        activation=_activation(config["hidden_act"], "hidden_act", where),
        eps=_eps(config, "layer_norm_eps", where),
        end_token=end,
    )


def t5_shape(config: Mapping[str, Any]) -> T5Shape:
    """As `clip_shape`. The activation is that of `feed_forward_proj` unless `dense_act_fn` names
    one."""
    where = "text_encoder_2/config.json"
    named = str(config["feed_forward_proj"])
    first, *others = named.split("-")
    is_gated = first == "gated"
    if len(others) != is_gated:
        raise EngineFailed(
            f"{where}: feed_forward_proj is {shown(named)}, neither an activation nor one behind "
            "'gated-'"
        )
    if bool(config.get("is_gated_act", is_gated)) != is_gated:
        raise EngineFailed(
            f"{where}: is_gated_act is {shown(config['is_gated_act'])}, but feed_forward_proj "
            f"{shown(named)}"
        )
    usual = "gelu_new" if named == "gated-gelu" else named.removeprefix("gated-")
    buckets, distance = (config[f"relative_attention_{x}"] for x in ("num_buckets", "max_distance"))
    if not _is_count(buckets) or buckets < 4 or buckets % 2 or not _is_count(distance):
        raise EngineFailed(
            f"{where}: relative_attention_num_buckets {shown(buckets)} must be even, 4 or more, "
            f"and relative_attention_max_distance {shown(distance)} a whole number"
        )
    if distance <= buckets // 4:
        raise EngineFailed(
            f"{where}: relative_attention_max_distance {distance} must be above a quarter of "
            f"relative_attention_num_buckets {buckets}"
        )
    return T5Shape(
        vocab=config["vocab_size"],
        dim=config["d_model"],
        mlp=config["d_ff"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        buckets=buckets,
        max_distance=distance,
        is_gated=is_gated,
        activation=_activation(config.get("dense_act_fn", usual), "dense_act_fn", where),
        eps=_eps(config, "layer_norm_epsilon", where),
    )


def _activation(name: Any, key: str, where: str) -> str:
    if name not in ACTIVATIONS:
        raise EngineFailed(f"{where}: {key} is {shown(name)}; served are {', '.join(ACTIVATIONS)}")
    return str(name)


def _eps(config: Mapping[str, Any], key: str, where: str) -> float:
    value = config[key]
    if not is_real(value) or value <= 0:
        raise EngineFailed(f"{where}: {key} is {shown(value)}, not a number above 0")
    return float(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
