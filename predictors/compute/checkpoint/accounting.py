"""Checks that every stored tensor of a component is expected, by name, dtype and shape in the
headers. Each model passes the tensors that it expects and those that may be ignored.

An unexpected tensor is an error: scales beside weights mean that the weights are quantised,
`lora_A` means that an adapter should be applied to them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from predictors.compute.checkpoint.folder import UNQUANTISED
from predictors.compute.checkpoint.headers import Header, headers_of, read_headers
from predictors.errors import EngineFailed

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that a weight may be stored in, by safetensors' names."""
FP8 = frozenset({"F8_E4M3"})

QUANTISED: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(weight_scale_2|(weight|input)_global_scale)$", "compressed-tensors NVFP4"),
    (r"(^|\.)g_idx$", "GPTQ"),
    (r"(^|\.)(wscales|smooth_factor(_orig)?|proj_(down|up)|wtscale|wcscales)$", "SVDQuant"),
    (r"(^|\.)(qweight|qzeros)$", "AWQ or GPTQ"),
    (r"(^|\.)(SCB|weight_format)$", "bitsandbytes int8"),
    (r"quant_state|(^|\.)(nested_)?(absmax|quant_map)$", "bitsandbytes 4-bit"),
    (r"(^|\.)weight_(packed|shape|zero_point|g_idx)$", "compressed-tensors, packed"),
    (r"(^|\.)(weight|activation)_scale_inv$", "FP8 in blocks"),
    (r"(^|\.)(scale_weight|scale_input|scaled_fp8)$", "scaled FP8, as ComfyUI stores it"),
    (r"(^|\.)weight_scale$", "compressed-tensors"),
    (r"qdata$", "torchao"),
    (r"\.(_data|_scale)$|(^|\.)weight_qtype$", "quanto"),
    (r"(^|\.)W_q$", "HQQ"),
    (r"(weight|input|output)_quantizer(\.|$)|(^|[._])amax$", "ModelOpt"),
    (r"(^|\.)(codebooks|codes)$", "AQLM"),
    (r"[._](blocks|scales|zeros|zero_points?)$", "integers with scales"),
    (r"(^|\.)(k|v|q|kv|kv_cache|prob)_scale$", "KV-cache scales"),
    (r"(^|[._])(input|output|act|activation|[qkv]|kv|weight)_(global_)?scale$", "FP8 with scales"),
    (r"(^|\.)(scale|zero)$", "integers with scales"),
)
"""Patterns of tensors that are part of quantised weights, and the method that stores them: those
that no layer of `quantised.recognise` took. The first match wins."""
ADVICE = f"weights stored so are not served: {UNQUANTISED}"
ADAPTED = re.compile(
    r"(^|[._])(lora|loha|lokr|hada|dora|ia3|oft|adapter|base_layer|modules_to_save)([._]|$)"
    r"|lora_|(^|\.)alpha$|magnitude_vector"
)


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that a model expects. `shape` is None if the shape is checked elsewhere."""

    shape: tuple[int, ...] | None = None
    dtypes: Collection[str] = FLOATS


def check_tensors(
    component: str,
    stored: Mapping[str, Header],
    wanted: Mapping[str, ExpectedTensor],
    unused: str = r"(?!)",
    advice: str = ADVICE,
) -> None:
    """Raise `EngineFailed` naming a tensor that is unexpected, missing, or of another dtype or
    shape than expected.

    `unused` is a pattern of names that may be ignored. `advice` says what to do about quantised
    weights.
    """
    foreign = [name for name in stored if name not in wanted]
    for name in foreign:
        if ADAPTED.search(name):
            raise EngineFailed(
                f"{component} holds tensors of an adapter such as {name}, which would not be "
                "applied; merge it into the weights, or take the folder without it"
            )
    found = find_quantised(foreign, stored) or find_other_dtype(stored, wanted)
    if found is not None:
        method, name = found
        raise EngineFailed(f"{component} is quantised ({method}; tensor {name}): {advice}")
    left = [name for name in foreign if not re.search(unused, name)]
    if left:
        raise EngineFailed(
            f"{component} holds {len(left)} tensors that have no place in this model, such as "
            f"{min(left)}: its config is another model's, or something was added to it"
        )
    if missing := wanted.keys() - stored.keys():
        count = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EngineFailed(f"the checkpoint's {component} has no tensor {min(missing)}{count}")
    for name, want in wanted.items():
        if want.shape is not None and stored[name].shape != want.shape:
            raise EngineFailed(
                f"tensor {name} has shape {list(stored[name].shape)}; the config asks for "
                f"{list(want.shape)}"
            )


def find_quantised(names: Iterable[str], stored: Mapping[str, Header]) -> tuple[str, str] | None:
    """The method of the first tensor that belongs to quantised weights, and its name."""
    names = list(names)
    for pattern, method in QUANTISED:
        for name in names:
            if re.search(pattern, name):
                if method == "AWQ or GPTQ":
                    method = "AWQ"  # GPTQ has `g_idx`, which comes first
                return _with_kind(method, name, stored), name
    return None


def _with_kind(method: str, scale: str, stored: Mapping[str, Header]) -> str:
    if method != "compressed-tensors":
        return method
    weight = stored.get(scale.removesuffix("_scale"))
    kind = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "I8": "int8", "U8": "packed"}
    return f"{method} {kind.get(weight.dtype, '') if weight else ''}".strip()


def witness(folder: Path) -> str:
    """`; tensor NAME` for a message: a tensor that shows quantised weights; else empty."""
    try:
        stored = headers_of(read_headers(folder))
    except EngineFailed:
        return ""
    odd = (name for name, header in stored.items() if header.dtype not in FLOATS)
    found = find_quantised(stored, stored)
    name = found[1] if found else next(odd, "")
    return f"; tensor {name}" if name else ""


def find_other_dtype(
    stored: Mapping[str, Header], wanted: Mapping[str, ExpectedTensor]
) -> tuple[str, str] | None:
    """A description of an unexpected dtype, and the name of the weight that has it."""
    for name, want in wanted.items():
        if name in stored and stored[name].dtype not in want.dtypes:
            kind = stored[name].dtype
            return f"{kind} instead of {' or '.join(sorted(want.dtypes))}", name
    return None
