"""The Qwen benchmark run on a toy: the parts that need an engine, a peer or a server, as they run
on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import host_time
from benchmarks.common.distances import distance
from benchmarks.common.run import PartialResults
from benchmarks.qwen_vl import accuracy, fp8, http, ours, peer, random_weights, warm
from benchmarks.qwen_vl.cases import Pictures
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.ours import Ours
from benchmarks.qwen_vl.peer import Peer, Stamps
from benchmarks.qwen_vl.sizes import SIZES
from benchmarks.qwen_vl.tables import cases

CPU = torch.device("cpu")
SHARD_BYTES = 2**20


@pytest.fixture(scope="module", params=SIZES)
def options(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QwenVLOptions]:
    """With a random toy checkpoint of each size, in several files."""
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    options = QwenVLOptions(str(folder), device="cpu", is_toy=True, slots=4, size=request.param)
    random_weights.make(folder, options.config, CPU, shard_bytes=SHARD_BYTES)
    before = torch.get_num_threads()
    yield options
    torch.set_num_threads(before)


def results_of(part: Any, options: QwenVLOptions, path: Path) -> dict[str, Any]:
    """The figures that a part writes to its file."""
    part(options, PartialResults(path / "part"))
    found: dict[str, Any] = json.loads((path / "part").read_text())
    return found


def test_the_engine_alone_gives_every_figure(options: QwenVLOptions, tmp_path: Path) -> None:
    found = results_of(ours.ours, options, tmp_path)
    assert not [name for name in found if name.endswith("failed")]
    assert {(row["rows"], row["prompt"]) for row in found["decode steps"]} == {
        (1, "text"), (1, "64x64"), (4, "text"), (4, "64x64"),
    }  # fmt: skip
    assert all(row["step_ms"] > 0 for row in found["decode steps"])
    assert found["first tokens"]["64x64"]["ms"] > 0
    assert found["prepare_ms"]["64x64"] > 0
    assert found["syncs while decoding"] == 0
    assert found["recompilations"] == 0


def test_the_peer_answers_as_the_engine_does_and_is_timed_both_ways(
    options: QwenVLOptions, tmp_path: Path
) -> None:
    found = results_of(peer.peer, options, tmp_path)
    rows = {name: row for name, row in found.items() if name.startswith("transformers")}
    assert len(rows) == 4
    assert all(row["tpot_ms"] > 0 and row["ttft_ms"] > row["prepare_ms"] for row in rows.values())
    one, files = Peer(Path(options.folder), CPU, torch.float32), [Pictures(64, 48).jpeg(5)]
    inputs = one.inputs([files], ["a red star"])
    made = one.generate(inputs, 6, Stamps(one.clock), is_static=False)
    engine = Ours(options)
    work = engine.prepare(*files, "a red star", tokens=6)
    (job,) = engine.answers([work])
    assert made[0].tolist() == [*work.tokens.tolist(), *job.tokens]


def test_logits_are_told_apart_by_prompt_and_a_wrong_model_is_seen(
    options: QwenVLOptions, tmp_path: Path
) -> None:
    found = results_of(accuracy.accuracy, options, tmp_path)
    assert set(found.pop("as near as the peer").values()) == {True}
    assert set(found) == {"text", "64x64", "64x48 and 64x64"}
    for row in found.values():
        assert row["ours as float32"] == 1.0
        assert row["finite"]
        assert row["ours to float32"] < 1e-4, "the CPU computes in float32 on both sides"
    one, other = Ours(options), Peer(Path(options.folder), CPU, torch.float32)
    prompt = next(accuracy.make_prompts(options))
    answer = accuracy.answer(one, prompt, 4)
    other.model.model.language_model.layers[0].mlp.down_proj.weight.data.mul_(2)
    wrong = accuracy.forced(other, prompt, answer)
    assert answer.logits is not None
    assert distance(answer.logits, wrong) > 0.01


def test_clients_measure_a_real_server(options: QwenVLOptions, tmp_path: Path) -> None:
    probed = replace(options, has_probe=True)
    found = results_of(http.http, probed if options.size == "7b" else options, tmp_path)
    rows = cases({"http": found}, "http")
    assert set(rows) == {str(case) for case in http.TOY_CASES}
    for case in http.TOY_CASES:
        row = rows[str(case)]
        assert (row["requests"], row["failed"], row["tokens_mean"]) == (case.requests, 0, 8)
        one_ms = row["ttft_ms_p50"] + (case.tokens - 1) * row["tpot_ms_mean"]
        assert 0 < row["tpot_ms_mean"] < one_ms < 2e3 * row["seconds"], "the same unit"
        assert row["requests_per_s"] > 0
        stages = row["host"]["stages"]
        counts = {stages[name]["count"] for name in host_time.FIRST_TOKEN}
        assert counts == {case.requests}, "the warm-up of the case is not in it"
        inside = sum(stages[name]["mean_ms"] for name in host_time.FIRST_TOKEN)
        assert 0 < inside < row["ttft_ms_mean"]
        assert row["host"]["steps"] >= case.tokens
    assert rows["2 x turns 64x64"]["prompt_tokens_mean"] > rows["4 x 64x64"]["prompt_tokens_mean"]
    assert found["step_budget"] is None, "nothing is bounded on the CPU"
    ended = found["counters"]["at the end"]
    assert ended['recompilations_total{model="qwen-vl"}'] == 0
    assert ("probe" in found) == (options.size == "7b")
    for name, probe in found.get("probe", {}).items():
        parts = probe["steps"].values()
        assert max(part["rows"] for part in parts) <= options.slots
        means = [wait["mean_ms"] for wait in probe["requests"].values()]
        assert min(means) >= 0
        assert sum(means) == pytest.approx(rows[name]["ttft_ms_mean"], rel=0.01)
        counts = [probe["steps"][kind]["count"] for kind in ("without prompts", "with prompts")]
        assert abs(rows[name]["host"]["steps"] - sum(counts)) <= 1, "the last one may be late"


def test_fp8_is_compared_with_base_weights_over_scenes(tmp_path: Path) -> None:
    out = tmp_path / "fp8.json"
    fp8.main(["--count", "2", "--device", "cpu", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["scenes"] == 2
    assert set(report["shares"]) == {"auto", "fp8"}
    assert report["shares"]["auto"]["right"] == 2, "the checkpoint can describe"
    low, high = report["difference_interval_95"]
    assert low <= report["difference_points"] <= high


def test_a_minimal_start_times_every_pass_beside_answers(options: QwenVLOptions) -> None:
    found = warm.measure(replace(options, slots=8, settings=warm.SETTINGS), "minimal")
    assert found["later"]
    assert all(each["seconds"] > 0 and each["others"] == 0 for each in found["later"])
    assert (found["failed"], found["unplanned"]) == ([], (0, 0))
