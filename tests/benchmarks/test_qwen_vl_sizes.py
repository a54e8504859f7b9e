"""The sizes of the Qwen benchmark: that each random checkpoint is the released model's, how it is
written, what a card needs for it, and which goals and figures of vLLM stand beside its own."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Size, Tensor

from benchmarks.common import journal
from benchmarks.qwen_vl import __main__ as qwen_vl
from benchmarks.qwen_vl import goals, random_weights, tables
from benchmarks.qwen_vl.answers import Answered, summed_up
from benchmarks.qwen_vl.attention import shapes as attention_shapes
from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.floors import ModelFloors, Rates, grid
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.quoted import beside
from benchmarks.qwen_vl.shares import decode_share
from benchmarks.qwen_vl.sizes import SEVEN, SIZES, THREE, ModelSize, size_of
from predictors.chat.tensors import by_hub_names
from predictors.models.qwen2_5_vl.config import read_shapes
from tests.chat.library_tensors import library_tensors
from tests.full_size import QWEN_3B, QWEN_7B

CPU = torch.device("cpu")
H200 = Rates(790e12, 4.3e12)
PUBLISHED = {"3b": (QWEN_3B, 3_754_622_976), "7b": (QWEN_7B, 8_292_166_656)}
BY_NAME = pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))


# -- the released models ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the full sizes, without weights."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SIZES}
    for name, folder in folders.items():
        random_weights.write_configs(folder, SIZES[name].full)
    return folders


@BY_NAME
def test_the_full_size_is_the_released_models(
    size: ModelSize, full: dict[str, Path], tmp_path: Path
) -> None:
    config, parameters = PUBLISHED[size.name]
    shapes = random_weights.shapes(full[size.name])
    assert sum(shape.numel() for shape in shapes.values()) == parameters
    named = by_hub_names({name: tuple(shape) for name, shape in shapes.items()})
    assert named == library_tensors(config, tmp_path)


@BY_NAME
def test_our_engine_reads_the_config_that_is_written(
    size: ModelSize, full: dict[str, Path]
) -> None:
    published, _ = PUBLISHED[size.name]
    raw, text, vision = read_shapes(full[size.name])
    assert raw["text_config"]["max_position_embeddings"] == published["max_position_embeddings"]
    assert (text.hidden, text.mlp, text.layers, text.heads, text.kv_heads) == tuple(
        published[name]
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads",
        )
    )  # fmt: skip
    assert (text.vocab, text.tied) == (published["vocab_size"], published["tie_word_embeddings"])
    assert (text.head_dim, vision.out, vision.depth) == (128, text.hidden, 32)
    vocabulary = json.loads((full[size.name] / "vocab.json").read_text())
    assert max(vocabulary.values()) == text.vocab - 1, "every token that can be chosen has text"


@BY_NAME
def test_a_toy_has_what_is_special_about_its_size(size: ModelSize, tmp_path: Path) -> None:
    random_weights.write_configs(tmp_path, size.toy)
    _, toy, vision = read_shapes(tmp_path)
    assert toy.tied == (size is THREE)
    assert vision.out == toy.hidden
    if size is SEVEN:
        assert toy.heads / toy.kv_heads == 28 / 4


# -- writing ---------------------------------------------------------------------------------------
@BY_NAME
def test_random_weights_are_the_same_twice_and_finite(size: ModelSize, tmp_path: Path) -> None:
    random_weights.make(tmp_path, size.toy, CPU)
    first = dict(random_weights.tensors(tmp_path, CPU))
    again = dict(random_weights.tensors(tmp_path, CPU))
    assert ("lm_head.weight" in first) == (size is SEVEN)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert tensor.isfinite().all()
        assert tensor.float().std() > 0, name
        if name.endswith("norm.weight"):
            assert abs(tensor.float().mean() - 1) < 0.1


def test_a_file_takes_tensors_in_order_until_it_is_full_and_at_least_one() -> None:
    shapes = {"a": Size((2, 4)), "b": Size((3, 4)), "c": Size((100,)), "d": Size((1,))}
    found = random_weights.shards(shapes, most_bytes=40)
    assert found == [{"a": 16, "b": 24}, {"c": 200}, {"d": 2}]


def test_the_files_of_7b_are_small_beside_the_whole(full: dict[str, Path]) -> None:
    shapes = random_weights.shapes(full["7b"])
    files = random_weights.shards(shapes, random_weights.SHARD_BYTES)
    assert max(sum(file.values()) for file in files) <= 2 * 2**30
    assert sum(sum(file.values()) for file in files) == 16_584_333_312, "as the hub's index says"
    assert [name for file in files for name in file] == list(shapes)


def test_weights_are_written_file_by_file_and_found_by_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    options = QwenVLOptions(str(folder), device="cpu", is_toy=True, slots=2, size="7b")
    made = random_weights.make(folder, options.config, CPU, shard_bytes=2**20)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    index = json.loads((folder / random_weights.INDEX).read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 2 * made["parameters"]
    assert made["bytes"] == sum((folder / name).stat().st_size for name in files)
    for name, tensor in random_weights.tensors(folder, CPU):
        assert torch.equal(load_file(folder / index["weight_map"][name])[name], tensor)


def test_only_one_file_of_weights_is_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def drawn() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for number in range(8):
            tensor = torch.full((5,), number, dtype=torch.bfloat16)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"t{number}", tensor

    files = random_weights.shards({f"t{i}": Size((5,)) for i in range(8)}, most_bytes=20)
    random_weights.write_shards(tmp_path, files, drawn())
    assert len(files) == 4
    assert most <= 3, "two of one file, and the one that was drawn last"


def test_what_an_earlier_attempt_left_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("half of a file")
    random_weights.make(tmp_path, THREE.toy, CPU)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == [
        "model-00001-of-00001.safetensors"
    ]


def test_a_disk_without_room_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"GB and the disk of .* --folder"):
        random_weights.write_shards(tmp_path, [{"a": 10**18}], iter(()))
    assert list(tmp_path.iterdir()) == []


# -- floors ----------------------------------------------------------------------------------------
@BY_NAME
def test_a_decode_step_reads_every_weight_of_the_text_model(
    size: ModelSize, full: dict[str, Path]
) -> None:
    shapes = random_weights.shapes(full[size.name])
    text_model = {name: shape.numel() for name, shape in shapes.items() if "visual" not in name}
    if size is SEVEN:  # one row of it is looked up
        text_model.pop("model.language_model.embed_tokens.weight")
    norm = ModelFloors.of(size.full).hidden  # the last one
    assert 2 * (sum(text_model.values()) - norm) == ModelFloors.of(size.full).weight_bytes


def test_floors_are_those_of_the_literature_table() -> None:
    floors = ModelFloors.of(THREE.full)
    assert floors.kv_bytes == 36_864
    assert grid(1024, 1024) == (74, 74)
    assert grid(1280, 720) == (92, 52)
    assert floors.vision_operations(1024, 1024) == pytest.approx(7.68e12, rel=0.02)
    assert floors.vision_operations(448, 448) == pytest.approx(1.34e12, rel=0.02)
    assert floors.prefill_operations(1433) == pytest.approx(8.26e12, rel=0.02)
    assert floors.decode_ms(H200, 1, 1500) == pytest.approx(1.45, rel=0.01)
    assert floors.decode_ms(H200, 64, 1500) == pytest.approx(2.26, rel=0.01)
    vision = floors.vision_operations(1024, 1024)
    rate = floors.requests_per_s(H200, 64, 1433, 128, vision)
    assert rate == pytest.approx(40.5, rel=0.03)


def test_floors_of_7b_are_its_weights_and_keys() -> None:
    floors = ModelFloors.of(SEVEN.full)
    assert floors.kv_bytes == 57_344
    assert floors.weight_bytes == pytest.approx(14.14e9, rel=0.001)
    assert floors.decode_ms(H200, 1, 0) == pytest.approx(3.29, rel=0.01)
    assert floors.vision_operations(448, 448) > 1.34e12, "its merger is wider"


def test_attention_is_measured_with_the_heads_of_the_size() -> None:
    heads = {
        name: {shape.heads for shape in attention_shapes(size.full["text_config"])}
        for name, size in SIZES.items()
    }
    assert heads == {"3b": {16}, "7b": {16, 28}}, "the tower has 16"


# -- goals and tables ------------------------------------------------------------------------------
def row(case: Case, **figures: float) -> dict[str, Any]:
    """Of the part `http`."""
    seen = [Answered(0.0, [0.05, 0.06], 0.07, 1433, 128)]
    return {
        "case": {"clients": case.clients, "kind": case.kind, "requests": 1, "tokens": 128},
        **summed_up(seen),
        **figures,
    }


def run_of(size: str, gpu: str = "NVIDIA H200", **parts: Any) -> dict[str, Any]:
    """A run with one client and with 64, about pictures."""
    one, many = Case(1, "1024x1024", 16), Case(64, "1024x1024", 320)
    return {
        "options": {"size": size, "settings": {}},
        "make": {"machine": {"gpu": gpu}},
        "ceilings": {"bf16": 790e12, "copy_bytes_per_s": 4.3e12},
        "http": {
            str(one): row(one, tpot_ms_mean=4.0, itl_ms_p50=4.0),
            str(many): row(many, requests_per_s=18.1, itl_ms_p99=58.8, tpot_ms_mean=19.3),
        },
        **parts,
    }


def held_of(found: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Limit, and whether it is held, by goal."""
    return {goal["what"]: (goal["limit"], goal["held"]) for goal in goals.held(found)}


def test_7b_has_goals_beside_vllm_and_per_card() -> None:
    held = held_of(run_of("7b"))
    assert held == {
        "1 x 1024x1024: tpot_ms_mean": (3.9, False),
        "64 x 1024x1024: requests_per_s": (pytest.approx(1.4 * 12.9), True),
        "64 x 1024x1024: tpot_ms_mean": (19.4, True),
        "64 x 1024x1024: itl_ms_p99": (60.0, True),
    }
    assert held_of(run_of("7b", "NVIDIA H100 80GB HBM3"))["1 x 1024x1024: tpot_ms_mean"] == (
        4.9, True,
    )  # fmt: skip


def test_3b_must_not_be_behind_vllm_between_texts() -> None:
    text = Case(64, "text", 768)
    found = run_of("3b", http={str(text): row(text, itl_ms_p99=13.4, tpot_ms_mean=3.4)})
    held = held_of(found)
    assert held["64 x text: itl_ms_p99"] == (7.5, False)
    assert held["64 x text: tpot_ms_mean"] == (4.4, True)
    assert held_of(found | {"make": {}})["64 x text: itl_ms_p99"] == (60.0, True)


def test_decoding_many_rows_has_a_share_of_the_floor_as_its_goal() -> None:
    step = {"prompt": "text", "tokens": 128.0, "step_ms": 3.08}
    found = run_of("3b", ours={"decode steps": [step | {"rows": rows} for rows in (1, 8, 64)]})
    held = held_of(found)
    names = [name for name in held if name.startswith("decoding")]
    assert names == [
        "decoding 8 rows after text: share of the floor",
        "decoding 64 rows after text: share of the floor",
    ]
    assert held[names[1]] == (0.75, False)
    assert held_of(run_of("3b", ours={"decode steps": [step | {"rows": 64, "step_ms": 2.0}]}))[
        names[1]
    ] == (0.75, True)


def test_vllm_of_the_same_run_goes_before_what_is_quoted() -> None:
    case = Case(64, "1024x1024", 320)
    measured = {"version": "0.30.1", str(case): row(case, requests_per_s=13.5, itl_ms_p99=50.0)}
    found = run_of("7b", vllm=measured)
    other = beside(found)
    assert other is not None
    assert other.label == "vLLM 0.30.1, same run"
    assert held_of(found)["64 x 1024x1024: requests_per_s"] == (pytest.approx(18.9), False)
    assert held_of(found)["64 x 1024x1024: itl_ms_p99"] == (50.0, False)


def test_nothing_is_quoted_for_a_card_on_which_it_was_not_measured() -> None:
    for size in SIZES:
        for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"):
            other = beside(run_of(size, gpu))
            assert other is not None
            assert other.label.endswith("quoted")
            assert len(other.rows) == 6
        assert beside(run_of(size, "NVIDIA A10")) is None
        assert beside(run_of(size, vllm={"was not": "vllm cannot be imported here"})) is not None
    seven = beside(run_of("7b"))
    assert seven is not None
    assert seven.label == "vLLM 0.30, quoted"
    assert seven.rows["64 x text"]["itl_ms_p99"] == 10.3


def test_rows_stand_beside_vllms_and_what_was_not_counted_is_a_dash() -> None:
    found = run_of("7b")
    found["http"]["64 x 1024x1024"]["joules_per_1000_tokens"] = 321.4
    head, rule, *rows = journal.table(tables.side_by_side, found).splitlines()
    assert "ms per token, mean" in head
    assert rule.startswith("|---")
    assert rows[0].startswith("| 1 x 1024x1024 | here |")
    assert rows[0].endswith("| - | 83 % |"), "no joules; 3.29 ms of weights and some keys in 4.0"
    assert rows[1] == "| 1 x 1024x1024 | vLLM 0.30, quoted | - | 113.9 | 4.77 | - | - | - |"
    many = next(line for line in rows if line.startswith("| 64 x 1024x1024 | here"))
    assert "| 18.10 | 50.0 | 19.30 | 58.8 | 321 |" in many
    assert journal.table(tables.side_by_side, run_of("7b", http={})) == journal.MISSING


def test_the_share_of_decoding_needs_ceilings_and_times_between_texts() -> None:
    found = run_of("7b")
    one = found["http"]["1 x 1024x1024"]
    floor = ModelFloors.of(SEVEN.full).decode_ms(H200, 1, 1433 + 64)
    assert decode_share(one, found) == pytest.approx(floor / 4.0)
    assert decode_share(one | {"itl_ms_p50": None}, found) is None
    assert decode_share(one, found | {"ceilings": {}}) is None


# -- the command -----------------------------------------------------------------------------------
def test_each_size_has_its_own_checkpoint_and_results() -> None:
    three, seven = (qwen_vl.read_options(["--toy", "--size", name]) for name in SIZES)
    assert three.out.name == "qwen_vl-toy.json"
    assert seven.out.name == "qwen_vl_7b-toy.json"
    assert Path(seven.options.folder).name == "qwen-vl-7b-toy"
    assert QwenVLOptions.of(seven.options.as_json()).config == SEVEN.toy
    full = qwen_vl.read_options(["--size", "7b"])
    assert full.out.name == "qwen_vl_7b.json"
    assert Path(full.options.folder).name == "qwen-vl-7b-random"
    assert full.options.config == SEVEN.full
    assert qwen_vl.read_options([]).out.name == "qwen_vl.json"
    with pytest.raises(SystemExit):
        qwen_vl.read_options(["--size", "72b"])


def test_results_without_a_size_are_3bs() -> None:
    assert size_of({}) is THREE
    assert size_of({"options": {"device": "cuda:0"}}) is THREE
    assert size_of({"options": {"size": "7b"}}) is SEVEN


def test_parts_that_are_kept_have_their_own_day_until_they_are_measured_again(
    tmp_path: Path,
) -> None:
    def made(day: str) -> dict[str, Any]:
        return {"machine": {"gpu": "NVIDIA H200", "date": day}}

    out = tmp_path / "found.json"
    options = {"is_toy": True, "settings": {}, "size": "3b"}
    run = qwen_vl.QwenVLRun(out, budget_s=60, options=options)
    earlier = {"make": made("2026-11-24"), "http": {}, "peer": {"load_s": 3.0}, "failed": {"x": ""}}
    run.keep(earlier | {"kept": {"peer": "2026-11-20"}, "took_s": {}})
    assert run.found["failed"] == {}
    run.section("make", lambda: made("2026-11-30"))
    run.section("http", lambda: {"ready_s": 2.0})
    run.section("peer", dict, least_s=1e9)
    run.save()
    kept = json.loads(out.read_text())
    assert kept["kept"] == {"peer": "2026-11-20"}
    assert kept["left_out"] == ["peer"]
    assert kept["peer"] == {"load_s": 3.0}
    rows = dict(tables.machine(kept))
    assert rows["date"] == "2026-11-30"
    assert rows["parts of 2026-11-20"] == "peer"
