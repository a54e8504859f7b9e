"""Adapters that are refused, each by a sentence that names the tensor, the file or the field."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictors.errors import InvalidRequest
from tests.models.flux.adapters.adapter_files import (
    ATTENTION,
    CLIP_Q,
    SINGLE,
    Tensors,
    diffusers,
    fused,
    halves,
    kohya,
    peft_folder,
    read,
    saved,
)

Q = f"{ATTENTION}.to_q"
OWN = halves(Q, 4)
GOOD = diffusers({Q: OWN})
DOWN, UP = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
FLAT = "lora_unet_transformer_blocks_0_attn_to_q"
ONE = np.ones(3, np.float32)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(path, **options)
    assert str(path.parent) not in caught.value.message
    assert len(caught.value.message) < 500
    return caught.value.message


FOREIGN = {
    "LoKr": f"{FLAT}.lokr_t2",
    "LoHa": f"{FLAT}.hada_t1",
    "DoRA": f"{FLAT}.dora_scale",
    "DoRA by PEFT": f"{Q}.lora_magnitude_vector.default.weight",
    "OFT": f"{FLAT}.oft_blocks",
    "BOFT": f"{Q}.boft_R",
    "GLoRA": f"{FLAT}.a1.weight",
    "IA3": f"{Q}.ia3_l",
    "VeRA": f"{Q}.vera_lambda_b",
    "core tensor": f"{FLAT}.lora_mid.weight",
    "differences": f"{FLAT}.diff",
    "biases": f"{FLAT}.diff_b",
    "modules_to_save": "base_model.model.proj_out.modules_to_save.default.weight",
    "full weights": "base_model.model.proj_out.weight",
    "full weights by diffusers": f"{Q}.weight",
    "full weights by the authors": "diffusion_model.double_blocks.0.img_attn.qkv.weight",
    "lora_bias": f"{Q}.lora_B.bias",
    "textual inversion": "bundle_emb.x.string_to_param.*",
    "norms": "double_blocks.0.img_attn.norm.query_norm.scale",
    "norms of diffusers": "transformer.transformer_blocks.0.attn.norm_q.weight",
}


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_another_kind_of_adapter_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    name = FOREIGN[kind]
    message = refusal(saved(tmp_path, GOOD | {name: ONE}))
    assert message.startswith("a.safetensors holds ")
    assert message.endswith(f"which is not served: {name}")


def test_the_kinds_have_the_names_that_people_use(tmp_path: Path) -> None:
    for kind in ("LoKr", "LoHa", "DoRA", "OFT", "BOFT", "GLoRA", "modules_to_save", "lora_bias"):
        assert kind in refusal(saved(tmp_path, GOOD | {FOREIGN[kind]: ONE}))


def test_tensors_without_a_place_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    more = {f"transformer.transformer_blocks.{i}.attn.to_q.lora_A.weight": OWN[0] for i in (80, 81)}
    message = refusal(saved(tmp_path, GOOD | more))
    assert "holds 2 of 4 tensors that have no place in this checkpoint" in message
    assert "such as transformer.transformer_blocks.80.attn.to_q.lora_A.weight:" in message
    unet = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": OWN[0]}
    assert "an adapter of another model" in refusal(saved(tmp_path, unet))


def cut(tensors: Tensors, name: str, *shape: slice) -> Tensors:
    return tensors | {name: np.ascontiguousarray(tensors[name][shape])}


def test_a_shape_that_does_not_fit_is_named_with_both_shapes(tmp_path: Path) -> None:
    rows, columns = OWN[1].shape[0], OWN[0].shape[1]
    message = refusal(saved(tmp_path, cut(GOOD, DOWN, slice(None), slice(7))))
    asked = f"{DOWN} has shape [4, 7]; the checkpoint asks for [4, {columns}]"
    assert f"tensor {asked}" in message
    message = refusal(saved(tmp_path, cut(GOOD, UP, slice(9))))
    assert f"tensor {UP} has shape [9, 4]; the checkpoint asks for [{rows}, 4]" in message
    flat = GOOD | {UP: OWN[1].ravel()}
    assert f"shape [{rows * 4}]" in refusal(saved(tmp_path, flat))
    assert "shape []" in refusal(saved(tmp_path, GOOD | {DOWN: np.array(1, np.float32)}))
    assert "shape [0," in refusal(saved(tmp_path, cut(GOOD, DOWN, slice(0))))
    fits_not = kohya("lora_unet_double_blocks_0_img_attn_qkv", *OWN)
    message = refusal(saved(tmp_path, fits_not))
    assert f"has shape [{rows}, 4]; the checkpoint asks for [{3 * rows}, 4]" in message


def test_two_ranks_for_one_layer_are_named(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, cut(GOOD, UP, slice(None), slice(3))))
    assert "has two ranks for one layer: " in message
    assert f"{DOWN} is [4, " in message
    assert f"{UP} [{len(OWN[1])}, 3]" in message


def test_a_rank_beyond_the_limit_names_the_setting(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)
    assert read(path, max_rank=4).changes[Q].rank == 4
    message = refusal(path, max_rank=3)
    assert f"{DOWN} has rank 4; at most 3 is served (PREDICTORS_FLUX_LORA_MAX_RANK)" in message


def test_a_fused_layer_has_the_ranks_of_its_parts(tmp_path: Path) -> None:
    parts = [halves(f"{ATTENTION}.to_{x}", 4) for x in "qkv"]
    path = saved(tmp_path, kohya("lora_unet_double_blocks_0_img_attn_qkv", *fused(*parts)))
    assert [change.rank for change in read(path, max_rank=4).changes.values()] == [4, 4, 4]
    assert "has rank 12; at most 3" in refusal(path, max_rank=3)
    dense = kohya("lora_unet_double_blocks_0_img_attn_qkv", *fused(*parts))
    dense["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"] += 1
    assert "has rank 12; at most 4" in refusal(saved(tmp_path, dense), max_rank=4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e6, -2e6])
@pytest.mark.parametrize("name", [DOWN, UP])
def test_a_value_that_no_training_gives_is_named(name: str, value: float, tmp_path: Path) -> None:
    bad = GOOD[name].copy()
    bad[1, 2] = value
    message = refusal(saved(tmp_path, GOOD | {name: bad}))
    assert f"tensor {name} holds " in message


def test_float16_and_float64_are_checked_before_they_are_cast(tmp_path: Path) -> None:
    for dtype, value in ((np.float16, np.inf), (np.float64, 1e300)):
        bad = GOOD[UP].astype(dtype)
        bad[0, 0] = value
        assert f"tensor {UP} holds " in refusal(saved(tmp_path, GOOD | {UP: bad}))


def test_an_integer_tensor_is_refused(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, GOOD | {UP: GOOD[UP].astype(np.int8)}))
    assert f"tensor {UP} is I8; read are F64, F32, F16, BF16" in message


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (np.array(0.0, np.float32), "is 0; an alpha is above 0"),
        (np.array(-4.0, np.float32), "is -4"),
        (np.array([4.0, 4.0], np.float32), "F32 of shape [2]; it must be one number"),
        (np.array(np.nan, np.float32), "holds nan"),
        (np.array(True), "BOOL of shape []; it must be one number"),
    ],
    ids=["zero", "negative", "two", "nan", "bool"],
)
def test_an_alpha_that_is_none_is_named(alpha: Any, message: str, tmp_path: Path) -> None:
    found = refusal(saved(tmp_path, kohya(FLAT, *OWN) | {f"{FLAT}.alpha": alpha}))
    assert f"{FLAT}.alpha" in found
    assert message in found


def test_alphas_of_other_types_are_read(tmp_path: Path) -> None:
    for alpha in (np.array([2.0], np.float16), np.array(2, np.int64), np.array(2.0)):
        found = read(saved(tmp_path, kohya(FLAT, *OWN) | {f"{FLAT}.alpha": alpha}))
        assert np.array_equal(found.changes[Q].up, OWN[1] / 2)


def test_half_of_a_layer_and_two_of_one_are_named(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, {DOWN: OWN[0]}))
    assert f"has {DOWN}, but not the up half of that layer" in message
    alone = refusal(saved(tmp_path, GOOD | {f"{CLIP_Q}.alpha": np.array(1.0, np.float32)}))
    assert f"has {CLIP_Q}.alpha, but not the down half" in alone
    twice = refusal(saved(tmp_path, GOOD | kohya(FLAT, *OWN)))
    assert "has two tensors for one: " in twice
    assert DOWN in twice
    both = kohya("lora_unet_double_blocks_0_img_attn_qkv", *fused(*[OWN] * 3))
    assert f"changes {Q} twice: by " in refusal(saved(tmp_path, GOOD | both))
    several = diffusers({Q: OWN}, ".default") | diffusers(
        {f"{SINGLE}.proj_out": halves(f"{SINGLE}.proj_out", 2)}, ".other"
    )
    assert "holds several adapters: default, other" in refusal(saved(tmp_path, several))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path, {})) == "a.safetensors has no tensors"


# -- PEFT's config ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOKR"}, "peft_type is 'LOKR'; served is 'LORA'"),
        ({"use_dora": True}, "it is a DoRA adapter (use_dora)"),
        ({"modules_to_save": ["proj_out"]}, "full weights (modules_to_save)"),
        ({"bias": "all"}, "bias is 'all'; served is 'none'"),
        ({"lora_bias": True}, "lora_bias is True, not served"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"layer_replication": [[0, 4]]}, "layer_replication is [[0, 4]], not served"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"something_new": 0.5}, "something_new is 0.5, not served"),
        ({"r": 8}, "gives transformer_blocks.0.attn.to_q the rank 8; its tensors have 4"),
        ({"rank_pattern": {"to_q": 2}}, "the rank 2; its tensors have 4"),
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"lora_alpha": 1e30}, "lora_alpha is 1e+30"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', not true or false"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has (a+)+$, a regular expression"),
        ({"alpha_pattern": {"to_q": -1}}, "alpha_pattern gives to_q -1, not a number above 0"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_served_is_named_by_its_field(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors = {name.removeprefix("transformer."): x for name, x in GOOD.items()}
    folder = peft_folder(tmp_path / "peft", tensors, **{"r": 4, "lora_alpha": 4} | config)
    found = refusal(folder)
    assert found.startswith("adapter_config.json")
    assert message in found


def test_scales_are_said_once(tmp_path: Path) -> None:
    tensors = kohya(FLAT, *OWN, alpha=4)
    assert "of which only one can be meant" in refusal(
        peft_folder(tmp_path / "both", tensors, r=4, lora_alpha=4)
    )
    folder = peft_folder(tmp_path / "headers", GOOD, r=4, lora_alpha=4)
    saved(folder, GOOD, "adapter_model.safetensors", lora_adapter_metadata='{"transformer.r": 4}')
    assert "has a config of its own and adapter_config.json beside it" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["[]", "{", "\xff", '{"r": NaN}', '{"r": 4, "r": 4}', "[" * 10**5],
    ids=["list", "cut", "latin", "nan", "twice", "deep"],
)  # fmt: skip
def test_a_config_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", GOOD)
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    assert refusal(folder).startswith("adapter_config.json ")
    (folder / "adapter_config.json").write_text('{"a": "' + "x" * 2**21 + '"}')
    assert "at most 1048576 are read" in refusal(folder)


# -- files -----------------------------------------------------------------------------------------
def test_pickled_weights_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as file:
        file.writestr("data.pkl", b"\x80\x02.")
    assert "pickled weights are not read" in refusal(tmp_path / "a.bin")
    (tmp_path / "a.bin").rename(tmp_path / "b.safetensors")
    assert "is no safetensors file; pickled" in refusal(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"\x80\x04\x95rest of a pickle")
    assert "is no safetensors file; pickled" in refusal(tmp_path / "c.safetensors")
    for length in (0x0280, 0x0480):  # a header whose length begins as a pickle does
        path = saved(tmp_path, GOOD, pad="")
        short = int.from_bytes(path.read_bytes()[:8], "little")
        path = saved(tmp_path, GOOD, pad="x" * (length - short))
        assert path.read_bytes()[:2] == length.to_bytes(2, "little")
        assert read(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_lora_weights.bin").write_bytes(b"")
    assert "has no .safetensors file, but pytorch_lora_weights.bin: pickled" in refusal(folder)


def test_a_path_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == "there is no file or folder none"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == "empty has no .safetensors file"
    (tmp_path / "notes.txt").write_text("x")
    assert "its name must end with .safetensors" in refusal(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "there is no file" in refusal(tmp_path / "pipe.safetensors")
    two = tmp_path / "two"
    two.mkdir()
    saved(two, GOOD, "x.safetensors"), saved(two, GOOD, "y.safetensors")
    assert "two has x.safetensors, y.safetensors: give the one" in refusal(two)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, GOOD, "outside.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to("../outside.safetensors")
    message = refusal(folder)
    assert message == "a.safetensors is a link that leads out of its folder"
    (folder / "a.safetensors").unlink()
    (folder / "real").mkdir()
    saved(folder / "real", GOOD, "b.safetensors")
    (folder / "a.safetensors").symlink_to("real/b.safetensors")
    assert read(folder).file == "a.safetensors"
    (tmp_path / "config.json").write_text("{}")
    (folder / "adapter_config.json").symlink_to("../config.json")
    assert refusal(folder) == "adapter_config.json is a link that leads out of its folder"


def test_a_root_holds_for_files_as_well(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = saved(tmp_path, GOOD, "outside.safetensors")
    (root / "a.safetensors").symlink_to(outside)
    assert "leads out of its folder" in refusal(root / "a.safetensors", root=root)
    assert read(root / "a.safetensors").file == "a.safetensors"  # the operator named it


def test_a_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--me--style"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    saved(cache / "blobs", GOOD, "0123")
    (snapshot / "pytorch_lora_weights.safetensors").symlink_to("../../blobs/0123")
    for path in (cache, snapshot):
        assert read(path).file == "pytorch_lora_weights.safetensors"


# -- headers ---------------------------------------------------------------------------------------
def raw_file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "a.safetensors"
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


Header = tuple[Any, bytes, str]
HEADERS: dict[str, Header] = {
    "not an object": ([], b"", "the header of a.safetensors is a list"),
    "not JSON": (b"{]", b"", "is not JSON in UTF-8"),
    "not UTF-8": (b'{"\xff": 1}', b"", "is not JSON in UTF-8"),
    "nested": (b"[" * 10**6, b"", "is not JSON in UTF-8"),
    "a number of many digits": (b'{"a": ' + b"9" * 10**5 + b"}", b"", "is not JSON"),
    "a name twice": (b'{"a": 1, "a": 1}', b"", "has a twice in one object"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__ that is no object of texts"),
    "no entry": ({"a": 1}, b"", "an entry a without dtype"),
    "more in an entry": ({"a": entry(x=1)}, bytes(4), "an entry a without dtype"),
    "a dtype": ({"a": entry("F99")}, bytes(4), "the dtype 'F99'"),
    "a dtype of another type": ({"a": entry(["F32"])}, bytes(4), "the dtype ['F32']"),
    "a negative side": ({"a": entry(shape=[-1])}, bytes(4), "the shape [-1]"),
    "a side of float": ({"a": entry(shape=[1.0])}, bytes(4), "the shape [1.0]"),
    "a side of bool": ({"a": entry(shape=[True])}, bytes(4), "the shape [True]"),
    "a huge side": ({"a": entry(shape=[2**62])}, bytes(4), "the shape"),
    "sides whose product overflows": (
        {"a": entry(shape=[2**40, 2**40])}, bytes(4), "4 bytes; F32 of shape"
    ),
    "dimensions": ({"a": entry(shape=[1] * 9)}, bytes(4), "the shape"),
    "offsets": ({"a": entry(offsets=[0])}, bytes(4), "the data_offsets [0]"),
    "offsets backwards": ({"a": entry(offsets=[4, 0])}, bytes(4), "-4 bytes; F32"),
    "too many bytes": ({"a": entry(offsets=[0, 8])}, bytes(8), "8 bytes; F32 of shape [1] has 4"),
    "an overlap": (
        {"a": entry(), "b": entry(offsets=[0, 4])}, bytes(4), "tensors that overlap before b"
    ),
    "a gap": ({"a": entry(offsets=[4, 8])}, bytes(8), "tensors that leave a gap before a"),
    "bytes behind": ({"a": entry()}, bytes(5), "its header describes"),
    "bytes missing": ({"a": entry()}, bytes(3), "its header describes"),
    "a long name": ({"a" * 301: entry()}, bytes(4), "whose name has 301 characters"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HEADERS))
def test_an_absurd_header_is_refused(kind: str, tmp_path: Path) -> None:
    header, data, message = HEADERS[kind]
    assert message in refusal(raw_file(tmp_path, header, data))


def test_a_header_of_an_absurd_length_is_refused(tmp_path: Path) -> None:
    for length in (0, 1, 10**3, 2**62, 2**64 - 1):
        assert "announce a header of" in refusal(raw_file(tmp_path, {}, length=length))
    long = b'{"__metadata__": {"a": "' + b"x" * (16 * 2**20) + b'"}}'
    assert "at most 16777216 are read" in refusal(raw_file(tmp_path, long))
    many = {str(i): entry(shape=[0], offsets=[0, 0]) for i in range(20_001)}
    assert "has 20001 tensors; at most 20000" in refusal(raw_file(tmp_path, many))
    for size in range(8):
        (tmp_path / "a.safetensors").write_bytes(b"\x01" * size)
        assert "is no safetensors file, or cut short" in refusal(tmp_path / "a.safetensors")


def test_a_file_that_is_cut_while_it_is_read_gives_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, GOOD)
    from predictors.models.flux.adapters import reading

    check: Callable[..., None] = reading.check_layer

    def cut_then_check(*args: Any) -> None:
        os.truncate(path, path.stat().st_size - 8)
        check(*args)

    monkeypatch.setattr(reading, "check_layer", cut_then_check)
    assert refusal(path) == "a.safetensors became shorter while it was read"


def test_a_message_shows_no_control_characters_and_no_long_names(tmp_path: Path) -> None:
    name = "lora\n\x1b[31m" + "x" * 200
    message = refusal(saved(tmp_path, GOOD | {name: ONE}))
    assert re.search(r"[\x00-\x1f]", message) is None
    assert "x" * 150 not in message
