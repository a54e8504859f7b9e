"""Folders of PEFT adapters: every spelling that transformers takes, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from predictors.chat.adapters.peft import linear_name, read_peft_adapter
from predictors.chat.tensors import adaptable_linears, component_of, decoder_tensors
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.folder import decoder_sizes, linears, read_folder, vision_tensors
from tests.chat.adapters.peft_files import changes, of_newest, write_adapter, write_config
from tests.chat.room import CHECKPOINT

RAW, TEXT, VISION = read_folder(CHECKPOINT)
LINEARS = linears(RAW)
PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SOME = {
    name: LINEARS[name]
    for name in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.mlp.down_proj",
        "visual.blocks.1.attn.qkv",
        "visual.merger.mlp.2",
        "visual.patch_embed.proj",
    )
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "transformers 4.52 and later": lambda name: PREFIX + of_newest(name),
    "transformers up to 4.51": lambda name: PREFIX + name,
    "without PEFT's prefix": of_newest,
    "older, without the prefix": lambda name: name,
    "language model inside": lambda name: (
        PREFIX + (name if name.startswith("visual") else f"language_model.{name}")
    ),
    "the model without its head": lambda name: PREFIX + of_newest(name).removeprefix("model."),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of both parts, of rank 4."""
    return write_adapter(tmp_path_factory.mktemp("peft") / "sound", SOME, 1)


def rewritten(
    source: Path,
    target: Path,
    edit: Callable[[dict[str, Tensor]], object] = lambda _: None,
    **config: Any,
) -> Path:
    """A copy whose tensors went through `edit`, with other values of the config."""
    shutil.copytree(source, target)
    tensors = load_file(source / WEIGHTS)
    edit(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    values = json.loads((source / CONFIG).read_text()) | config
    (target / CONFIG).write_text(json.dumps(values))
    return target


def test_all_linears_of_both_parts_and_nothing_else_can_be_adapted() -> None:
    tensors = decoder_tensors(decoder_sizes(RAW, TEXT)) | vision_tensors(VISION)
    assert adaptable_linears(tensors) == LINEARS
    fixed = {n for n in tensors if n.endswith(".weight")} - {f"{n}.weight" for n in LINEARS}
    assert {name for name in fixed if len(tensors[name]) > 1} == {"model.embed_tokens.weight"}
    assert {component_of(name) for name in LINEARS} == {"the language model", "the vision tower"}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.replace(" ", "-"))
def test_an_adapter_is_the_same_in_every_spelling(
    sound: Path, tmp_path: Path, spelling: str
) -> None:
    folder = write_adapter(tmp_path / "one", SOME, 1, spelt=SPELLINGS[spelling])
    expected = read_peft_adapter(sound, LINEARS, 8)
    assert read_peft_adapter(folder, LINEARS, 8).digest == expected.digest
    assert list(expected.changes) == sorted(SOME)


def test_the_adapters_own_name_in_its_tensors_is_taken(sound: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    named = read_peft_adapter(rewritten(sound, tmp_path / "one", rename), LINEARS, 8)
    assert named.digest == read_peft_adapter(sound, LINEARS, 8).digest


@pytest.mark.parametrize("is_stabilised", [False, True])
def test_the_change_is_scale_b_a(tmp_path: Path, is_stabilised: bool) -> None:
    folder = write_adapter(tmp_path / "one", SOME, 7, lora_alpha=12, use_rslora=is_stabilised)
    config = json.loads((folder / CONFIG).read_text())
    expected = changes(load_file(folder / WEIGHTS), config)
    for name, change in read_peft_adapter(folder, LINEARS, 8).changes.items():
        found = torch.from_numpy(change.up) @ torch.from_numpy(change.down)
        wanted = expected[of_newest(name)]
        if len(SOME[name]) > 2:  # two equal frames
            wanted = wanted.view(SOME[name]).sum(2).flatten(1)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_patterns_give_a_linear_its_own_alpha_and_rank(sound: Path, tmp_path: Path) -> None:
    def shorten(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "q_proj" in name:
                tensors[name] = (tensor[:2] if "lora_A" in name else tensor[:, :2]).contiguous()

    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"attn.qkv": 16}}
    folder = rewritten(sound, tmp_path / "one", shorten, **patterns)
    found, plain = (read_peft_adapter(each, LINEARS, 8).changes for each in (folder, sound))
    name = "visual.blocks.1.attn.qkv"
    assert (found[name].up == 2 * plain[name].up).all()
    query = "model.layers.0.self_attn.q_proj"
    assert len(found[query].down) == 2
    assert (found[query].up == 2 * plain[query].up[:, :2]).all()


def test_the_summary_counts_both_parts(sound: Path) -> None:
    summary = read_peft_adapter(sound, LINEARS, 8).summary("mine")
    assert (summary.name, summary.file, summary.rank) == ("mine", WEIGHTS, 4)
    assert summary.linears == {"language model": 2, "vision tower": 3}


# -- refusals --------------------------------------------------------------------------------------
FIRST = f"{PREFIX}model.language_model.layers.0.self_attn.q_proj"
TOWER = f"{PREFIX}model.visual.blocks.1.attn.qkv"


def put(name: str, *shape: int, fill: float = 0.5) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.full(shape, fill)})


def pair(module: str, out: int, inputs: int, rank: int = 4) -> Callable[..., object]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{module}.lora_A.weight"] = torch.full((rank, inputs), 0.5)
        tensors[f"{module}.lora_B.weight"] = torch.full((out, rank), 0.5)

    return edit


def damaged(tensors: dict[str, Tensor]) -> None:
    tensors[f"{TOWER}.lora_B.weight"][3, 1] = float("nan")


def without_up(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{FIRST}.lora_B.weight"]


def twice(tensors: dict[str, Tensor]) -> None:
    for kind in ("lora_A", "lora_B"):
        own = tensors[f"{FIRST}.{kind}.weight"]
        tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.{kind}.weight"] = own.clone()


def several(tensors: dict[str, Tensor]) -> None:
    for kind in ("lora_A", "lora_B"):
        name = f"{FIRST}.{kind}.weight"
        tensors[name.replace("weight", "other.weight")] = tensors.pop(name)


def in_integers(tensors: dict[str, Tensor]) -> None:
    name = f"{TOWER}.lora_A.weight"
    tensors[name] = tensors[name].to(torch.int8)


NOTHING: Callable[[dict[str, Tensor]], object] = dict.clear
KEEP: Callable[[dict[str, Tensor]], object] = dict.copy
Q = "self_attn.q_proj"
REFUSALS: dict[str, tuple[Callable[[dict[str, Tensor]], object], dict[str, Any], str]] = {
    "DoRA's vector": (put(f"{FIRST}.lora_magnitude_vector", 128), {}, r"magnitude_vector.*DoRA"),
    "DoRA's option": (KEEP, {"use_dora": True}, "use_dora"),
    "LoHa": (put(f"{FIRST}.hada_w1_a", 4, 4), {}, "hada_w1_a.*LoHa"),
    "LoHa's option": (KEEP, {"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "LoKr": (put(f"{FIRST}.lokr_w1", 4, 4), {}, "lokr_w1.*LoKr"),
    "a saved head": (put(f"{PREFIX}lm_head.weight", 832, 128), {}, "lm_head.weight.*whole"),
    "modules_to_save": (KEEP, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "an adapted head": (pair(f"{PREFIX}lm_head", 832, 128), {}, "lm_head.*head is not adapted"),
    "embeddings": (
        put(f"{PREFIX}model.language_model.embed_tokens.lora_embedding_A", 4, 832),
        {}, "embed_tokens.*embeddings",
    ),
    "the tower's positions": (
        pair(f"{PREFIX}model.visual.pos_embed", 8, 8), {}, "no linear visual.pos_embed",
    ),
    "tokens": (KEEP, {"trainable_token_indices": [1]}, "trainable_token_indices"),
    "a layer beyond the last": (
        pair(f"{PREFIX}model.language_model.layers.3.{Q}", 128, 128), {},
        "no linear model.layers.3.self_attn.q_proj",
    ),
    "a block beyond the last": (
        pair(f"{PREFIX}model.visual.blocks.4.attn.qkv", 384, 128), {},
        "no linear visual.blocks.4.attn.qkv",
    ),
    "another model's layer": (pair(f"{PREFIX}model.layers.0.attn.wq", 8, 8), {}, "attn.wq"),
    "too many outputs": (pair(FIRST, 256, 128), {}, r"q_proj.lora_B.*\[256, 4\].*\[128, 4\]"),
    "too many inputs": (pair(TOWER, 384, 64), {}, r"qkv.lora_A.*\[4, 64\].*\[4, 128\]"),
    "a rank above the limit": (
        pair(FIRST, 128, 128, 9), {"rank_pattern": {"q_proj": 9}}, "rank 9.*1 to 8.*lora_max_rank",
    ),
    "a rank that the config denies": (KEEP, {"r": 5}, "rank 5.*have 4"),
    "no rank": (pair(FIRST, 128, 128, 0), {}, "q_proj.*rank 0"),
    "NaN in the tower": (damaged, {}, r"visual.blocks.1.attn.qkv.lora_B.weight.*nan"),
    "a huge change": (put(f"{FIRST}.lora_B.weight", 128, 4, fill=9e5), {}, "damaged"),
    "an endless alpha": (KEEP, {"lora_alpha": 1e308}, "lora_alpha"),
    "an alpha in words": (KEEP, {"lora_alpha": "16"}, "lora_alpha"),
    "half a pair": (without_up, {}, "q_proj.lora_A.weight has no lora_B"),
    "one linear twice": (twice, {}, "twice"),
    "two adapters": (several, {}, "several adapters.*other"),
    "nothing": (NOTHING, {}, "no tensors"),
    "integers": (in_integers, {}, "qkv.lora_A.weight is I8"),
    "biases": (put(f"{FIRST}.bias", 128), {"bias": "all"}, "bias"),
    "biases of B": (put(f"{FIRST}.lora_B.bias", 128), {}, "lora_B.bias.*biases"),
    "PiSSA": (KEEP, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "replicated layers": (KEEP, {"layer_replication": [[0, 2]]}, "layer_replication"),
    "an option of tomorrow": (KEEP, {"use_more": True}, "use_more"),
    "a pattern that never ends": (KEEP, {"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.replace(" ", "-"))
def test_an_adapter_that_is_not_served_is_refused_by_name(
    sound: Path, tmp_path: Path, case: str
) -> None:
    edit, config, message = REFUSALS[case]
    folder = rewritten(sound, tmp_path / "one", edit, **config)
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_peft_adapter(folder, LINEARS, 8)
    assert str(tmp_path) not in refusal.value.message


def cut_short(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def no_json(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", ')


def outward(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


FILES: dict[Callable[[Path], None], str] = {
    cut_short: WEIGHTS,
    pickled: "adapter_model.bin.*pickled",
    no_config: CONFIG,
    no_json: f"{CONFIG}.*JSON",
    outward: "link that leads out",
    removed: "no file or folder",
}


@pytest.mark.parametrize("damage", FILES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_refused(
    sound: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(InvalidRequest, match=FILES[damage]) as refusal:
        read_peft_adapter(folder, LINEARS, 8)
    assert str(tmp_path) not in refusal.value.message


def test_names_of_linears_do_not_depend_on_the_release() -> None:
    for linear in LINEARS:
        for spelt in SPELLINGS.values():
            assert linear_name(spelt(linear).removeprefix(PREFIX)) == linear


def test_a_config_may_be_as_old_as_peft(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.copytree(sound, folder)
    old = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False,
        "target_modules": "(.*q_proj|.*qkv)", "inference_mode": True, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(old))
    found = read_peft_adapter(folder, LINEARS, 8)
    assert found.digest == read_peft_adapter(sound, LINEARS, 8).digest
    write_config(folder)
    assert read_peft_adapter(folder, LINEARS, 8).digest == found.digest
