"""Finds the quantisation that a component's configs name, and refuses those that are not served.

Read are `quantization_config` and its other keys at the config's top and one level below, and the
files that GPTQ, AWQ and ModelOpt write beside it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.folder import UNQUANTISED, read_json, shown
from predictors.errors import EngineFailed

KEYS = ("quantization_config", "compression_config", "quantization")
FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files beside a config, and the method of one that names none."""
COMPRESSED = "compressed-tensors"
SERVED = {
    COMPRESSED: COMPRESSED,
    "fp8": "FP8",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
}
"""Methods that are dequantised at load, by their names in configs, as messages call them."""
NAMES = SERVED | {
    "aqlm": "AQLM", "auto-round": "AutoRound", "eetq": "EETQ", "fbgemm_fp8": "FBGEMM FP8",
    "gguf": "GGUF", "hqq": "HQQ", "mxfp4": "MXFP4", "nunchaku": "SVDQuant (nunchaku)",
    "nvfp4": "NVFP4", "svdquant": "SVDQuant", "vptq": "VPTQ",
}  # fmt: skip
FORMATS = {
    "float-quantized": "FP8",
    "int-quantized": "int8",
    "naive-quantized": "naive",
    "pack-quantized": "packed",
    "mixed-precision": "mixed",
}
"""Formats of compressed-tensors that are served, as messages call them."""
OTHER_FORMATS = {
    "nvfp4-pack-quantized": "NVFP4",
    "mxfp4-pack-quantized": "MXFP4",
    "mxfp6-pack-quantized": "MXFP6",
    "mxfp8-quantized": "MXFP8",
    "marlin-24": "sparse Marlin 2:4",
}
STRATEGIES = ("tensor", "channel", "group", "block")
ADVICE = f"this is not served: {UNQUANTISED}"
MAX_PATTERN = 200  # characters of an ignore pattern


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one group of compressed-tensors' config stores weights. `block` is rows and columns."""

    is_float: bool
    bits: int
    strategy: str
    group_size: int | None = None
    block: tuple[int, int] | None = None
    is_symmetric: bool = True


@dataclass(frozen=True, slots=True)
class NamedQuantisation:
    """A served quantisation as a config names it."""

    method: str
    """A key of `SERVED`."""
    name: str
    """As messages call it."""
    schemes: tuple[Scheme, ...] = ()
    """Of compressed-tensors; empty if the config has no groups."""
    bits: int | None = None
    """Of AWQ, GPTQ and bitsandbytes."""
    group_size: int | None = None
    """Of AWQ and GPTQ; -1 is a whole row."""
    block: tuple[int, int] | None = None
    """Of `fp8`: rows and columns that share a scale."""
    is_v2: bool = False
    """GPTQ whose zero points are stored as they are."""
    is_reordered: bool = False
    """GPTQ with `desc_act`: the group of a column is in `g_idx` alone."""
    ignored: tuple[str, ...] = ()
    """Modules that are not quantised: names, or `re:` and a pattern."""
    narrows_inputs: bool = False
    """True if the author's library quantises activations, too."""


def read_quantisation(
    config: Mapping[str, Any], folder: Path | None, component: str, shows: Callable[[], str] = str
) -> NamedQuantisation | None:
    """The quantisation that `config` or a file beside it names, or None.

    `shows` gives more words for a refusal, such as a tensor. Raises `EngineFailed` for a method or
    option that is not served, and for two that differ.
    """
    if folder is not None and not any(folder.glob("*.safetensors")):
        for file in sorted(folder.glob("*.gguf")):
            raise EngineFailed(
                f"{component} is quantised (GGUF; file {shown(file.name)}): {ADVICE}"
            )
    found = [(where, named) for where, named in _named(config, folder) if named]
    for where, named in found:
        if refused := _refusal(named):
            method, why = refused
            raise EngineFailed(
                f"{component} is quantised ({method}, says {where}{shows()}): {why or ADVICE}"
            )
    parsed = [(where, named, _parsed(named)) for where, named in found]
    for where, named, one in parsed[1:]:
        is_file = where in FILES  # a shorter copy of what the config says
        if one.method != parsed[0][2].method or (not is_file and named != parsed[0][1]):
            raise EngineFailed(
                f"{component} is quantised ({parsed[0][2].name}, says {parsed[0][0]}; {one.name}, "
                f"says {where}): one of them is wrong; {UNQUANTISED}"
            )
    return parsed[0][2] if parsed else None


def _named(config: Mapping[str, Any], folder: Path | None) -> Iterator[tuple[str, Any]]:
    parts = {"": config} | {f"{k}.": v for k, v in config.items() if isinstance(v, dict)}
    for prefix, part in parts.items():
        for key in KEYS:
            if prefix.rstrip(".") not in KEYS and part.get(key):
                yield f"its config's {prefix}{key}", part[key]
    for file, method in FILES.items():
        if folder is not None and (folder / file).is_file():
            named = read_json(folder, file, file)
            yield file, {"quant_method": method} | (named or {})


def named_method(config: Mapping[str, Any]) -> str:
    """The method that `config` names, served or not, as messages call it; empty if none."""
    return next((method_of(named) for _, named in _named(config, None) if named), "")


def method_of(named: Any) -> str:
    """The method as messages call it, with its number of bits where that is part of the name."""
    if not isinstance(named, dict):
        return f"an unknown method, {shown(named)}"
    method, style = _method(named), str(named.get("format") or "").lower()
    if method == COMPRESSED:
        kind = FORMATS.get(style) or OTHER_FORMATS.get(style) or ""
        widths = sorted({str(weights.get("num_bits")) for weights in _weights(named)})
        kind += f" int{widths[0]}" if kind == "packed" and len(widths) == 1 else ""
        return _words(COMPRESSED, kind, f"({style})" if style else "")
    if method == "bitsandbytes":
        return "bitsandbytes " + ("int8" if _flag(named, "load_in_8bit") else "4-bit")
    if method == "modelopt":
        inner = named.get("quantization")
        algorithm = (inner if isinstance(inner, dict) else named).get("quant_algo")
        return _words("ModelOpt", str(algorithm or ""))
    bits = named.get("bits") or named.get("w_bit")
    if not method and "group_size" in named:
        method = "MLX"  # it writes these two numbers alone
    name = NAMES.get(method, method) or "an unnamed method"
    return _words(name, f"{bits}-bit" if bits else "")


def _method(named: Mapping[str, Any]) -> str:
    names = ("quant_method", "method", "quant_backend")
    method = str(next(filter(None, map(named.get, names)), "")).lower()
    if method in {"compressed_tensors", COMPRESSED} or (not method and named.get("format")):
        return COMPRESSED
    if method == "bitsandbytes" or (not method and any(map(named.get, LOADS))):
        return "bitsandbytes"
    if not method and named.get("quant_algo"):
        return "modelopt"
    return method


LOADS = ("load_in_8bit", "load_in_4bit", "_load_in_8bit", "_load_in_4bit")


def _flag(named: Mapping[str, Any], name: str) -> bool:
    return bool(named.get(name) or named.get(f"_{name}"))


def _words(*words: str) -> str:
    """The non-empty words, as ASCII and shortened for a message."""
    return " ".join(word.encode("ascii", "replace").decode()[:60] for word in words if word)


def _refusal(named: Any) -> tuple[str, str] | None:
    """The method, and why it is not served if that is more than its name."""
    method = method_of(named)
    if not isinstance(named, dict) or (key := _method(named)) not in SERVED:
        return method, ""
    for name in ("kv_cache_scheme", "transform_config", "rotation"):
        if named.get(name):
            return method, f"it sets {name}, which is not served: {UNQUANTISED}"
    sparse = named.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format") not in (None, "dense"):
        return method, f"its sparsity_config, {shown(sparse.get('format'))}, {ADVICE}"
    checks = {COMPRESSED: _compressed_refusal, "awq": _awq_refusal, "gptq": _gptq_refusal}
    why = checks[key](named) if key in checks else ""
    if key == "fp8":
        why = _fp8_refusal(named)
    return (method, why) if why else None


def _compressed_refusal(named: Mapping[str, Any]) -> str:
    groups = named.get("config_groups")
    inner = [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    for style in (named.get("format"), *(group.get("format") for group in inner)):
        if style is not None and str(style).lower() not in FORMATS:
            return f"the format {shown(style)} is not served: {UNQUANTISED}"
    if groups is not None and (not isinstance(groups, dict) or len(inner) != len(groups)):
        return f"config_groups is {shown(groups)}, not groups of weights; {UNQUANTISED}"
    for weights in _weights(named):
        if _scheme(weights) is None:
            return f"weights as {shown(weights)} are not served: {UNQUANTISED}"
    return ""


def _awq_refusal(named: Mapping[str, Any]) -> str:
    bits, version = _bits(named), str(named.get("version") or _format(named) or "gemm").lower()
    if bits not in (None, 4):
        return f"AWQ in {shown(bits)} bits is not served, only in 4: {UNQUANTISED}"
    if version != "gemm":
        return f"AWQ's version {shown(version)} is not served, only gemm: {UNQUANTISED}"
    return ""


def _gptq_refusal(named: Mapping[str, Any]) -> str:
    bits, style = _bits(named), _format(named) or "gptq"
    if bits not in (None, 4, 8):
        return f"GPTQ in {shown(bits)} bits is not served, only in 4 and 8: {UNQUANTISED}"
    if style not in ("gptq", "gptq_v2"):
        return f"the checkpoint_format {shown(style)} is not served: {UNQUANTISED}"
    if named.get("is_marlin_format"):
        return f"the format Marlin is not served: {UNQUANTISED}"
    return ""


def _fp8_refusal(named: Mapping[str, Any]) -> str:
    block = named.get("weight_block_size")
    if block is not None and _pair(block) is None:
        return f"weight_block_size is {shown(block)}, not rows and columns; {UNQUANTISED}"
    style = named.get("fmt") or "e4m3"
    if style not in ("e4m3", "float8_e4m3fn"):
        return f"the format {shown(style)} is not served: {UNQUANTISED}"
    return ""


def _parsed(named: Mapping[str, Any]) -> NamedQuantisation:
    method = _method(named)
    group = named.get("group_size", named.get("q_group_size"))
    bits = 8 if _flag(named, "load_in_8bit") else 4
    return NamedQuantisation(
        method,
        method_of(named),
        schemes=tuple(s for w in _weights(named) if (s := _scheme(w)) is not None),
        bits=bits if method == "bitsandbytes" else _bits(named),
        group_size=group if _is_whole(group) else None,
        block=_pair(named.get("weight_block_size")),
        is_v2=_format(named) == "gptq_v2",
        is_reordered=bool(named.get("desc_act")),
        ignored=tuple(_ignored(named)),
        narrows_inputs=_narrows_inputs(named),
    )


def _ignored(named: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ignore", "ignored_layers", "modules_to_not_convert", "llm_int8_skip_modules"):
        listed = named.get(key)
        for module in listed if isinstance(listed, list) else ():
            if isinstance(module, str) and 0 < len(module) <= MAX_PATTERN:
                yield module


def _narrows_inputs(named: Mapping[str, Any]) -> bool:
    groups = named.get("config_groups")
    inner = groups.values() if isinstance(groups, dict) else ()
    by_group = any(isinstance(g, dict) and g.get("input_activations") for g in inner)
    return by_group or bool(named.get("activation_scheme")) or _flag(named, "load_in_8bit")


def _weights(named: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = named.get("config_groups")
    inner = groups.values() if isinstance(groups, dict) else ()
    found = [group.get("weights") for group in inner if isinstance(group, dict)]
    return [weights for weights in found if isinstance(weights, dict)]


def _scheme(weights: Mapping[str, Any]) -> Scheme | None:
    """None if weights are stored in a way that is not served."""
    bits, kind = weights.get("num_bits", 8), str(weights.get("type", "int")).lower()
    group, block = weights.get("group_size"), weights.get("block_structure")
    implied = "tensor" if group is None else "channel" if group == -1 else "group"
    strategy = str(weights.get("strategy") or implied).lower()
    if kind not in ("int", "float") or bits not in ((8,) if kind == "float" else (4, 8)):
        return None
    if strategy not in STRATEGIES or weights.get("dynamic"):
        return None
    size = group if isinstance(group, int) and strategy == "group" else None
    if strategy == "group" and (size is None or size < 1):
        return None
    if isinstance(block, str):  # how early releases wrote it
        block = [
            int(side) if side.isdecimal() and len(side) < 10 else 0 for side in block.split("x")
        ]
    if strategy == "block" and _pair(block) is None:
        return None
    return Scheme(
        kind == "float",
        bits,
        strategy,
        size,
        _pair(block) if strategy == "block" else None,
        bool(weights.get("symmetric", True)),
    )


def _format(named: Mapping[str, Any]) -> Any:
    """Of AWQ and GPTQ, by the keys of their different writers."""
    return named.get("checkpoint_format") or named.get("format")


def _bits(named: Mapping[str, Any]) -> Any:
    return named.get("bits", named.get("w_bit"))


def _pair(value: Any) -> tuple[int, int] | None:
    is_pair = isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))
    return (value[0], value[1]) if is_pair and min(value) > 0 and max(value) < 2**31 else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
