"""The Qwen benchmark run on a toy: the parts that need an engine, a peer or a server, as they run
on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.run import Notes, Options
from benchmarks.qwen_vl import accuracy as qwen_vl_accuracy
from benchmarks.qwen_vl import http as qwen_vl_http
from benchmarks.qwen_vl import ours as qwen_vl_ours
from benchmarks.qwen_vl import peer as qwen_vl_peer
from benchmarks.qwen_vl import random_weights as qwen_vl_random
from benchmarks.qwen_vl.cases import Pictures
from benchmarks.qwen_vl.ours import Ours
from benchmarks.qwen_vl.peer import Peer, Stamps
from benchmarks.qwen_vl.report import cases

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Options]:
    """With a random toy checkpoint."""
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    qwen_vl_random.make(folder, qwen_vl_random.TOY, CPU)
    before = torch.get_num_threads()
    yield Options(folder=str(folder), device="cpu", is_toy=True, slots=4)
    torch.set_num_threads(before)


def notes_of(part: Any, options: Options, path: Path) -> dict[str, Any]:
    """What a part tells, as its file has it."""
    part(options, Notes(path / "part"))
    found: dict[str, Any] = json.loads((path / "part").read_text())
    return found


def test_the_engine_alone_gives_every_figure(options: Options, tmp_path: Path) -> None:
    found = notes_of(qwen_vl_ours.ours, options, tmp_path)
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
    options: Options, tmp_path: Path
) -> None:
    found = notes_of(qwen_vl_peer.peer, options, tmp_path)
    rows = {name: row for name, row in found.items() if name.startswith("transformers")}
    assert len(rows) == 4
    assert all(row["tpot_ms"] > 0 and row["ttft_ms"] > row["prepare_ms"] for row in rows.values())
    peer, files = Peer(Path(options.folder), CPU, torch.float32), [Pictures(64, 48).jpeg(5)]
    inputs = peer.inputs([files], ["a red star"])
    made = peer.generate(inputs, 6, Stamps(peer.clock), is_static=False)
    work = (one := Ours(options)).prepare(*files, "a red star", tokens=6)
    (job,) = one.answers([work])
    assert made[0].tolist() == [*work.tokens.tolist(), *job.tokens]


def test_logits_are_told_apart_by_prompt_and_a_wrong_model_is_seen(
    options: Options, tmp_path: Path
) -> None:
    found = notes_of(qwen_vl_accuracy.accuracy, options, tmp_path)
    assert set(found.pop("as near as the peer").values()) == {True}
    assert set(found) == {"text", "64x64", "64x48 and 64x64"}
    for row in found.values():
        assert row["ours as float32"] == 1.0
        assert row["finite"]
        assert row["ours to float32"] < 1e-4, "the CPU computes in float32 on both sides"
    one, peer = Ours(options), Peer(Path(options.folder), CPU, torch.float32)
    prompt = next(qwen_vl_accuracy.make_prompts(options))
    ours = qwen_vl_accuracy.answer(one, prompt, 4)
    peer.model.model.language_model.layers[0].mlp.down_proj.weight.data.mul_(2)
    wrong = qwen_vl_accuracy.forced(peer, prompt, ours)
    assert ours.logits is not None
    assert qwen_vl_accuracy.distance(ours.logits, wrong) > 0.01


def test_clients_measure_a_real_server(options: Options, tmp_path: Path) -> None:
    found = notes_of(qwen_vl_http.http, options, tmp_path)
    rows = cases({"http": found}, "http")
    assert set(rows) == {str(case) for case in qwen_vl_http.TOY_CASES}
    for case in qwen_vl_http.TOY_CASES:
        row = rows[str(case)]
        assert (row["requests"], row["failed"], row["tokens_mean"]) == (case.requests, 0, 8)
        one_ms = row["ttft_ms_p50"] + (case.tokens - 1) * row["tpot_ms_mean"]
        assert 0 < row["tpot_ms_mean"] < one_ms < 2e3 * row["seconds"], "the same unit"
        assert row["requests_per_s"] > 0
    assert rows["2 x turns 64x64"]["prompt_tokens_mean"] > rows["4 x 64x64"]["prompt_tokens_mean"]
    ended = found["counters"]["at the end"]
    assert ended['recompilations_total{model="qwen-vl"}'] == 0
