"""A quantisation that is not served, or whose tensors contradict each other, is refused at the
start by its method and a tensor or key, in one sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from predictors.compute.checkpoint.accounting import ExpectedTensor, check_tensors
from predictors.compute.checkpoint.quantised.config import read_quantisation
from predictors.compute.checkpoint.quantised.source import PlainTensors
from predictors.errors import EngineFailed
from tests.compute.checkpoint.quantised.folders import folder_of, layer
from tests.compute.checkpoint.quantised.writers import METHODS

WEIGHT = torch.randn(64, 128, generator=torch.Generator().manual_seed(8))
COMPRESSED = {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
Edit = Callable[[dict[str, Tensor]], object]


def config_of(method: str, **changed: Any) -> dict[str, Any]:
    return (METHODS[method].config or {}) | changed


def group_of(method: str, **weights: Any) -> dict[str, Any]:
    named = config_of(method)
    group = named["config_groups"]["group_0"]
    return named | {"config_groups": {"g": group | {"weights": group["weights"] | weights}}}


# -- methods, by what a config names ---------------------------------------------------------------
NAMED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "NVFP4": ({**COMPRESSED, "format": "nvfp4-pack-quantized"}, ("NVFP4", "'nvfp4-pack-qu")),
    "MXFP4": ({**COMPRESSED, "format": "mxfp4-pack-quantized"}, ("MXFP4",)),
    "plain MXFP4": ({"quant_method": "mxfp4"}, ("MXFP4",)),
    "Marlin 2:4": ({**COMPRESSED, "format": "marlin-24"}, ("sparse Marlin 2:4",)),
    "sparse": (
        config_of("fp8 per channel", sparsity_config={"format": "sparse-24-bitmask"}),
        ("compressed-tensors FP8", "sparsity_config", "sparse-24-bitmask"),
    ),
    "rotated": (
        config_of("fp8 per channel", transform_config={"config_groups": {"u": {}}}),
        ("transform_config",),
    ),
    "KV cache": (
        config_of("fp8 per channel", kv_cache_scheme={"num_bits": 8}),
        ("kv_cache_scheme",),
    ),
    "GGUF": ({"quant_method": "gguf", "compute_dtype": "bfloat16"}, ("GGUF",)),
    "torchao": ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, ("torchao",)),
    "SVDQuant": ({"method": "svdquant", "weight": {"dtype": "fp4_e2m1_all"}}, ("SVDQuant",)),
    "quanto": ({"quant_method": "quanto", "weights_dtype": "int8"}, ("quanto",)),
    "HQQ": ({"quant_method": "hqq", "quant_config": {}}, ("HQQ",)),
    "AQLM": ({"quant_method": "aqlm"}, ("AQLM",)),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, ("ModelOpt FP8",)),
    "AutoRound": ({"quant_method": "auto-round", "bits": 4}, ("AutoRound 4-bit",)),
    "MLX": ({"group_size": 64, "bits": 4}, ("MLX 4-bit",)),
    "new": ({"quant_method": "quark"}, ("quark",)),
    "a word": ("nf4", ("an unknown method, 'nf4'",)),
    "a list": ([4], ("an unknown method, [4]",)),
    "GPTQ in 3 bits": (config_of("GPTQ 4-bit", bits=3), ("GPTQ 3-bit", "only in 4 and 8")),
    "GPTQ for Marlin": (config_of("GPTQ 4-bit", checkpoint_format="marlin"), ("'marlin'",)),
    "AWQ for GEMV": (config_of("AWQ", version="gemv_fast"), ("AWQ 4-bit", "'gemv_fast'")),
    "AWQ in 8 bits": (config_of("AWQ", bits=8), ("AWQ 8-bit", "only in 4")),
    "int3": (group_of("packed int4 in groups", num_bits=3), ("packed int3", "'num_bits': 3")),
    "fp4": (group_of("fp8 per channel", num_bits=4), ("'num_bits': 4",)),
    "blocks that are none": (
        config_of("fp8 in blocks of 128", weight_block_size=[128]),
        ("weight_block_size is [128]",),
    ),
    "another float8": (config_of("fp8 in blocks of 128", fmt="e5m2fnuz"), ("'e5m2fnuz'",)),
}


@pytest.mark.parametrize(("named", "said"), NAMED.values(), ids=NAMED)
def test_a_method_that_a_config_names_is_refused_by_name(
    tmp_path: Path, named: Any, said: tuple[str, ...]
) -> None:
    folder = folder_of(tmp_path / "part", {"a.weight": WEIGHT}, named)
    message = refusal(folder)
    for words in (*said, "part is quantised (", "take the unquantised folder"):
        assert words in message


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "part", {"a.weight": WEIGHT})
    (folder / "model.safetensors").unlink()
    (folder / "flux1-dev-Q4_K_S.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineFailed, match=r"part is quantised \(GGUF; file 'flux1-dev-Q4_K_S"):
        read_quantisation({}, folder, "part")


def test_two_configs_that_differ_are_refused(tmp_path: Path) -> None:
    two = {
        "text_config": {"quantization_config": config_of("AWQ")},
        "quantization_config": config_of("GPTQ 4-bit"),
    }
    with pytest.raises(EngineFailed, match=r"GPTQ 4-bit, says .*; AWQ 4-bit, says .*one of them"):
        read_quantisation(two, None, "part")


# -- tensors that contradict the config or each other ----------------------------------------------
def replaced(leaf: str, change: Callable[[Tensor], Tensor]) -> Edit:
    return lambda stored: stored.update({f"a.{leaf}": change(stored[f"a.{leaf}"])})


def lost(leaf: str) -> Edit:
    return lambda stored: stored.pop(f"a.{leaf}")


def beside(leaf: str, tensor: Tensor) -> Edit:
    return lambda stored: stored.update({f"a.{leaf}": tensor})


def with_nan(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = float("nan")
    return changed


def state(text: bytes) -> Edit:
    name = "weight.quant_state.bitsandbytes__nf4"
    return beside(name, torch.tensor(list(text), dtype=torch.uint8))


def huge(shape: list[int]) -> Edit:
    return state(f'{{"blocksize": 64, "shape": {shape}}}'.encode())


def shaped(*sizes: int) -> Edit:
    return beside("weight_shape", torch.tensor(sizes))


ONE = torch.ones(1)
CHANNEL = "fp8 per channel"
PACKED, NESTED = "packed int4 in groups", "nf4, nested"
HOSTILE: dict[str, tuple[str, Edit, str]] = {
    "scales of another shape": (CHANNEL, replaced("weight_scale", lambda t: t[1:]), "weight_scale"),
    "no scale": (CHANNEL, lost("weight_scale"), "a.weight"),
    "two scales": (CHANNEL, beside("scale_weight", ONE), "scale_weight"),
    "scales in float8": (
        CHANNEL,
        replaced("weight_scale", lambda t: t.to(torch.float8_e4m3fn)),
        "weight_scale",
    ),
    "scale of NaN": (CHANNEL, replaced("weight_scale", with_nan), "weight_scale"),
    "scale of infinity": (
        "AWQ",
        replaced("scales", lambda t: t.clone().fill_(float("inf"))),
        "a.scales",
    ),
    "value of NaN": (
        CHANNEL,
        replaced("weight", lambda t: with_nan(t.float()).to(torch.float8_e4m3fn)),
        "a.weight",
    ),
    "scale that overflows": (
        CHANNEL,
        replaced("weight_scale", lambda t: t.clone().fill_(3e38)),
        "a.weight",
    ),
    "scale of activations per channel": (
        CHANNEL,
        beside("input_scale", torch.ones(128)),
        "input_scale",
    ),
    "scales of the cache": (CHANNEL, beside("k_scale", ONE), "k_scale"),
    "zero points of another shape": (
        "int8 with zero points",
        replaced("weight_zero_point", lambda t: t[:1]),
        "weight_zero_point",
    ),
    "no zero points": ("int8 with zero points", lost("weight_zero_point"), "weight_zero_point"),
    "no packed zero points": (
        "packed int4 with zero points",
        lost("weight_zero_point"),
        "weight_zero_point",
    ),
    "zero points out of range": (
        PACKED,
        beside("weight_zero_point", torch.full((64, 4), 8, dtype=torch.int8)),
        "weight_zero_point",
    ),
    "groups that do not divide": (
        PACKED,
        replaced("weight_scale", lambda t: t[:, :3]),
        "weight_scale",
    ),
    "groups of another size": (
        PACKED,
        replaced("weight_scale", lambda t: t[:, :2]),
        "weight_scale",
    ),
    "a shape that lies": (PACKED, shaped(2**30, 2**30), "weight_shape"),
    "a shape that is not this one": (PACKED, shaped(64, 256), "weight_packed"),
    "a negative shape": (PACKED, shaped(-64, 128), "weight_shape"),
    "no shape": (PACKED, lost("weight_shape"), "weight_shape"),
    "groups beyond the last": (
        PACKED,
        beside("weight_g_idx", torch.full((128,), 4, dtype=torch.int32)),
        "weight_g_idx",
    ),
    "a group index per row": (
        PACKED,
        beside("weight_g_idx", torch.zeros(64, dtype=torch.int32)),
        "weight_g_idx",
    ),
    "a negative group": (
        "GPTQ 4-bit, reordered",
        replaced("g_idx", lambda t: t - 1),
        "g_idx",
    ),
    "no group index": ("GPTQ 4-bit, reordered", lost("g_idx"), "g_idx"),
    "GPTQ's wrapped zero points": (
        "GPTQ 4-bit",
        replaced("qzeros", lambda t: t.clone().fill_(-1)),
        "qzeros",
    ),
    "GPTQ without zero points": ("GPTQ 4-bit", lost("qzeros"), "qzeros"),
    "AWQ without scales": ("AWQ", lost("scales"), "scales"),
    "AWQ with words of bytes": ("AWQ", replaced("qweight", lambda t: t.to(torch.int8)), "qweight"),
    "AWQ with other columns": ("AWQ", replaced("qweight", lambda t: t[:, :5]), "qweight"),
    "blocks of another size": (
        "fp8 in blocks of 128",
        beside("weight_scale_inv", torch.ones(2, 4)),
        "weight_scale_inv",
    ),
    "int8 that is packed FP4": (
        "fp8 in blocks of 128",
        replaced("weight", lambda t: t.view(torch.int8)),
        "a.weight",
    ),
    "no state": (NESTED, lost("weight.quant_state.bitsandbytes__nf4"), "quant_state"),
    "a state that is no JSON": (NESTED, state(b"{"), "quant_state"),
    "a state of a megabyte": (NESTED, state(b"{}" + b" " * 2**20), "quant_state"),
    "a state without a shape": (NESTED, state(b"{}"), "quant_state"),
    "a state whose shape lies": (NESTED, huge([2**20, 2**20]), "quant_state"),
    "a state of another shape": (NESTED, huge([64, 64]), "a.weight"),
    "no inner block": (NESTED, huge([64, 128]), "quant_state"),
    "no table": (NESTED, lost("weight.quant_map"), "quant_map"),
    "magnitudes of another number": (
        "nf4",
        replaced("weight.absmax", lambda t: t[1:]),
        "absmax",
    ),
    "magnitude of NaN": ("nf4", replaced("weight.absmax", with_nan), "absmax"),
    "row scales of another shape": (
        "int8 of bitsandbytes",
        replaced("SCB", lambda t: t[:, None]),
        "SCB",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("method", "edit", "tensor"), HOSTILE.values(), ids=HOSTILE)
def test_tensors_that_contradict_each_other_are_refused_by_name(
    tmp_path: Path, method: str, edit: Edit, tensor: str
) -> None:
    stored = layer("a", METHODS[method].write(WEIGHT).stored)
    edit(stored)
    assert tensor in refusal(folder_of(tmp_path / "part", stored, METHODS[method].config))


OTHER = {
    "a config over plain weights": (None, config_of("AWQ"), "no tensor is stored so"),
    "another method": ("AWQ", config_of("fp8 per channel"), "its config names compressed-tensors"),
    "GPTQ that is called AWQ": ("GPTQ 4-bit", config_of("AWQ"), "its config names AWQ"),
    "a module that is excepted": (
        "fp8 per channel",
        config_of("fp8 per channel", ignore=["lm_head", "a"]),
        "excepts the module 'a'",
    ),
    "a pattern that excepts": (
        "packed int8",
        config_of("packed int8", ignore=["re:^a$"]),
        "excepts the module 'a'",
    ),
    "a module that bitsandbytes skips": (
        "nf4",
        config_of("nf4", llm_int8_skip_modules=["a"]),
        "excepts the module 'a'",
    ),
    "packed weights without a config": (PACKED, None, "quantization_config is missing"),
    "GPTQ without a config": ("GPTQ 4-bit", None, "quantize_config.json is missing"),
    "other weights than the config's": (
        "int8 per channel",
        config_of("fp8 per channel"),
        "config_groups have no such weights",
    ),
    "other groups than the config's": (
        PACKED,
        config_of("packed int4 with zero points"),
        "int4 in groups of 32",
    ),
}


@pytest.mark.parametrize(("method", "named", "said"), OTHER.values(), ids=OTHER)
def test_a_config_that_the_tensors_contradict_is_refused(
    tmp_path: Path, method: str | None, named: Any, said: str
) -> None:
    stored = {"weight": WEIGHT} if method is None else METHODS[method].write(WEIGHT).stored
    assert said in refusal(folder_of(tmp_path / "part", layer("a", stored), named))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.int32])
def test_narrow_weights_without_scales_stay_what_they_are(
    tmp_path: Path, kind: torch.dtype
) -> None:
    """So the check of dtypes refuses them: where a bias or norm is wide, a scale was lost."""
    stored = {"a.weight": WEIGHT.to(kind), "a.bias": torch.ones(64)}
    with PlainTensors(folder_of(tmp_path / "part", stored), "part") as opened:
        assert opened.headers()["a.weight"].dtype not in {"F32", "BF16"}
        assert opened.quantised.method == ""


def refusal(folder: Path) -> str:
    """The message of a load that must not get as far as `a.weight` in float16."""
    with pytest.raises(EngineFailed) as failure:
        load(folder)
    message = failure.value.message
    assert str(folder) not in message
    assert "\n" not in message
    assert message.isascii()
    assert len(message) < 400
    return message


def load(folder: Path) -> None:
    """Check and read as a model does that has one weight."""
    with PlainTensors(folder, "part") as opened:
        check_tensors("part", opened.headers(), {"a.weight": ExpectedTensor()})
        target = torch.empty(opened.shape("a.weight"), dtype=torch.float16)
        opened.copy_into([(target, "a.weight")])


# -- any tensors -----------------------------------------------------------------------------------
LEAVES = [
    "weight", "weight_scale", "weight_scale_inv", "scale_weight", "SCB", "weight_format",
    "weight_zero_point", "weight_packed", "weight_shape", "weight_g_idx", "qweight", "qzeros",
    "scales", "g_idx", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "input_scale",
    "weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4", "comfy_quant", "scaled_fp8",
]  # fmt: skip
DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.uint8,
    torch.int32, torch.int64,
]  # fmt: skip
TENSORS = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.sampled_from([0, 1, 2, 8, 16]), max_size=3)
)


@given(
    st.dictionaries(st.sampled_from(LEAVES), TENSORS, min_size=1, max_size=6),
    st.sampled_from([None, *METHODS]),
)
@settings(max_examples=50, deadline=None)
def test_any_tensors_are_read_or_refused(
    drawn: dict[str, tuple[torch.dtype, list[int]]], method: str | None
) -> None:
    stored = {leaf: torch.ones(shape).to(dtype) for leaf, (dtype, shape) in drawn.items()}
    read_or_refuse(stored, METHODS[method].config if method else None)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "fewer rows": lambda t: t[:-1] if t.ndim else t[None],
    "fewer columns": lambda t: t[..., :-1] if t.ndim else t[None],
    "flat": lambda t: t.flatten(),
    "one more dimension": lambda t: t[None],
    "transposed": lambda t: t.t() if t.ndim == 2 else t.flatten()[:1],
    "empty": lambda t: t.flatten()[:0],
    "twice": lambda t: torch.cat([t, t]) if t.ndim else t,
    "all bits": lambda t: torch.full_like(t.view(-1).view(torch.uint8), 255).view(t.dtype),
} | {str(dtype): lambda t, dtype=dtype: t.float().to(dtype) for dtype in DTYPES}


@given(st.sampled_from(list(METHODS)), st.integers(0, 9), st.sampled_from(list(CHANGES)))
@settings(max_examples=120, deadline=None)
def test_a_layer_with_any_part_changed_is_read_or_refused(
    method: str, part: int, change: str
) -> None:
    stored = dict(WRITTEN[method])
    leaf = sorted(stored)[part % len(stored)]
    stored[leaf] = CHANGES[change](stored[leaf])
    read_or_refuse(stored, METHODS[method].config)


WRITTEN = {name: method.write(WEIGHT[:32]).stored for name, method in METHODS.items()}


def read_or_refuse(stored: dict[str, Tensor], named: dict[str, Any] | None) -> None:
    messages = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            load(folder_of(Path(folder) / "part", layer("a", stored), named))
        except EngineFailed as failure:
            messages.append(failure.message)
    assert all(len(message) < 400 and message.isascii() for message in messages)


# -- any JSON --------------------------------------------------------------------------------------
KEYS = [
    "quant_method", "format", "config_groups", "weights", "num_bits", "type", "strategy",
    "group_size", "block_structure", "ignore", "bits", "version", "weight_block_size", "desc_act",
    "kv_cache_scheme", "sparsity_config", "checkpoint_format", "input_activations", "load_in_4bit",
]  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["compressed-tensors", "pack-quantized", "fp8", "awq", "gptq", "group", "int"]),
)  # fmt: skip
OBJECTS = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), OBJECTS, max_size=6))
def test_any_config_is_read_or_refused(named: dict[str, Any]) -> None:
    messages = []
    try:
        read_quantisation({"quantization_config": named}, None, "part")
    except EngineFailed as failure:
        messages.append(failure.message)
    assert all(len(message) < 400 and message.isascii() for message in messages)
