"""The Qwen benchmark's arithmetic and wire: what a client reads, what many answers come to, what a
card's floor is, which goals are held."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from benchmarks.common import journal
from benchmarks.common.distances import distance
from benchmarks.common.run import BenchmarkRun, rounded
from benchmarks.qwen_vl import __main__ as qwen_vl
from benchmarks.qwen_vl import goals, random_weights, tables
from benchmarks.qwen_vl.accuracy import agreement, regret, verdict
from benchmarks.qwen_vl.answers import Answered, energy_of, summed_up
from benchmarks.qwen_vl.cases import NUM_TOKENS, Case, Conversations, Pictures, text
from benchmarks.qwen_vl.client import Events, shares
from benchmarks.qwen_vl.http import APART, CASES, WARM, chosen
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.shares import share_of_floor
from benchmarks.qwen_vl.sizes import SIZES, THREE
from predictors.cli.bench.intervals import quantile

OPTIONS = QwenVLOptions(folder="nowhere", device="cpu", is_toy=True, slots=4)


# -- statistics ------------------------------------------------------------------------------------
def test_an_answers_times_are_those_of_its_texts() -> None:
    seen = Answered(sent=1.0, texts=[1.5, 1.6, 1.8], ended=1.9, tokens=5)
    assert seen.ttft_ms == pytest.approx(500)
    assert seen.gaps_ms == pytest.approx([100, 200])
    assert seen.tpot_ms == pytest.approx(300 / 4), "two tokens had no text of their own"
    assert replace(seen, tokens=1).tpot_ms is None


def test_a_quantile_is_a_value_that_occurred() -> None:
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([], 0.5) is None


def test_a_case_sums_up_what_was_answered_and_counts_what_failed() -> None:
    good = [Answered(i, [i + 0.1, i + 0.2], i + 0.25, 60, 3, turn=i) for i in range(4)]
    found = summed_up([*good, Answered(0.0, error="503 busy")])
    assert found["requests"] == 5
    assert found["failed"] == 1
    assert found["errors"] == ["503 busy"]
    assert found["requests_per_s"] == pytest.approx(4 / 3.25)
    assert found["tokens_per_s"] == pytest.approx(12 / 3.25)
    assert found["ttft_ms_p50"] == pytest.approx(100)
    assert found["later_ttft_ms_p99"] == pytest.approx(100)
    assert found["tpot_ms_mean"] == pytest.approx(50)
    assert "requests_per_s" not in summed_up([Answered(0.0, error="gone")])


# -- the wire --------------------------------------------------------------------------------------
def chunked(*events: str) -> bytes:
    """An answer as a server streams it, one chunk per event."""
    parts = [f"data: {event}\n\n".encode() for event in events]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_read_however_the_bytes_are_split(size: int) -> None:
    raw = chunked('{"a":1}', '{"b":"\\n"}', "[DONE]")
    reader, seen = Events(), list[bytes]()
    for start in range(0, len(raw), size):
        assert not reader.is_over
        seen += reader.feed(raw[start : start + size])
    assert seen == [b'{"a":1}', b'{"b":"\\n"}', b"[DONE]"]
    assert reader.is_over
    assert reader.status == 200


def test_an_event_may_be_spread_over_chunks() -> None:
    raw = b"HTTP/1.1 200 OK\r\n\r\n6\r\ndata: \r\n5\r\nxyz\n\n\r\n0\r\n\r\n"
    assert list(Events().feed(raw)) == [b"xyz"]


@pytest.mark.parametrize("size", [1, 10_000])
def test_a_refusal_is_read_whole(size: int) -> None:
    raw = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
    reader, seen = Events(), list[bytes]()
    for start in range(0, len(raw), size):
        seen += reader.feed(raw[start : start + size])
    assert seen == [b"busy"]
    assert reader.is_over
    assert reader.status == 503


@pytest.mark.parametrize("case", CASES, ids=str)
def test_processes_share_a_case_and_no_conversation_is_held_twice(case: Case) -> None:
    parts = shares(case, 1, "m", 1000)
    assert sum(part.clients for part in parts) == case.clients
    numbers = [part.first + i * part.step for part in parts for i in range(part.conversations)]
    assert len(set(numbers)) == len(numbers) == case.requests // case.turns
    assert all(part.conversations >= part.clients for part in parts), "nobody stands idle"


# -- what is asked ---------------------------------------------------------------------------------
def test_a_prompt_has_about_64_tokens_of_text(tmp_path: Path) -> None:
    random_weights.write_configs(tmp_path, THREE.full)
    parts: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        tmp_path, local_files_only=True
    )
    tokenizer = parts.tokenizer.backend_tokenizer
    for seed in range(20):
        turn = {"role": "user", "content": text(seed)}
        rendered = parts.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        assert 60 <= len(tokenizer.encode(rendered).ids) <= 66
    assert tokenizer.id_to_token(151935) is not None, "every token that can be chosen has text"
    assert tokenizer.id_to_token(812) == "<|image_pad|>"


def test_pictures_differ_by_seed_alone_and_are_as_large_as_photographs() -> None:
    pictures = Pictures(448, 448)
    first, other = pictures.jpeg(1), pictures.jpeg(2)
    assert first == Pictures(448, 448).jpeg(1)
    assert first != other
    assert 40_000 < len(first) < 120_000


def test_only_the_same_picture_is_repeated() -> None:
    def urls(kind: str) -> list[str]:
        talk = Conversations(Case(1, kind, 1), "m")
        parts = [p for n in (5, 6) for p in talk.opening(n)["messages"][0]["content"]]
        return [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]

    assert len(set(urls("2 56x56"))) == 4
    assert len(urls("same 56x56")) == 2
    assert len(set(urls("same 56x56"))) == 1
    assert urls("text") == []


def test_a_later_turn_brings_what_was_said() -> None:
    talk = Conversations(Case(1, "turns 56x56", 3), "m")
    second = talk.reply(talk.opening(3), "a star", 301)
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "a star"
    assert second["max_tokens"] == NUM_TOKENS
    assert second["ignore_eos"]
    assert second["stream"]


def test_no_case_asks_about_another_ones_pictures() -> None:
    seeds: dict[tuple[int, int], list[range]] = {}
    for number, case in enumerate(CASES, start=1):
        if case.size and not case.is_same:
            first = APART * number
            for start in (first, first + WARM):
                end = start + case.requests
                seeds.setdefault(case.size, []).append(
                    range(start * case.pictures, end * case.pictures)
                )
    for spans in seeds.values():
        spans.sort(key=lambda span: span.start)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(spans))


def test_cases_can_be_chosen_by_name() -> None:
    options = replace(OPTIONS, is_toy=False, cases="64 x text, 1 x 448x448")
    assert [str(case) for case in chosen(options)] == ["1 x 448x448", "64 x text"]
    assert chosen(replace(OPTIONS, is_toy=False)) == list(CASES)
    for size in SIZES:
        assert {case for case, _ in goals.GOALS[size]} <= {str(case) for case in CASES}


# -- accuracy --------------------------------------------------------------------------------------
def test_distances_agreement_and_regret() -> None:
    exact = torch.tensor([[1.0, 3.0], [5.0, 4.0]])
    assert distance(exact, exact) == 0
    assert agreement(torch.tensor([1, 1]), exact) == 0.5
    assert regret(torch.tensor([1, 1]), exact) == pytest.approx(0.5)
    near = {"peer to float32": 0.01, "ours to float32": 0.011, "ours regret": 0, "peer regret": 0}
    held = verdict({"a": near, "b": near | {"ours to float32": 0.02}, "load_s": 3.0})
    assert held == {"a": True, "b": False}


# -- goals and tables ------------------------------------------------------------------------------
def clients(case: Case, **figures: float) -> dict[str, Any]:
    """A row of the part `http`."""
    seen = [Answered(0.0, [0.05, 0.06], 0.07, 1433, 128)]
    return {
        "case": {"clients": case.clients, "kind": case.kind, "requests": 1, "tokens": 128},
        **summed_up(seen),
        **figures,
    }


def found() -> dict[str, Any]:
    """A run with two cases."""
    one, many = Case(1, "1024x1024", 16), Case(64, "1024x1024", 320)
    return {
        "options": {"is_toy": True, "settings": {}},
        "make": {"machine": {"gpu": "NVIDIA H200", "cores": 16}},
        "ceilings": {"bf16": 790e12, "copy_bytes_per_s": 4.3e12},
        "http": {
            "ready_s": 3.0,
            str(one): clients(one, ttft_ms_p50=50.0, tpot_ms_mean=3.1),
            str(many): clients(many, requests_per_s=20.25, itl_ms_p99=61.0),
            "counters": {"at the end": {'recompilations_total{model="qwen-vl"}': 1.0}},
        },
        "vllm": {"was not": "vllm cannot be imported here"},
        "left_out": ["soak"],
        "failed": {"ours": "exit code 1"},
    }


def test_energy_is_per_request_and_per_tokens_and_absent_where_it_was_not_counted() -> None:
    good = Answered(0.0, [0.05, 0.06], 0.07, 1433, 128)
    assert energy_of([good, good, Answered(0.0, error="gone")], None) == {}
    assert energy_of([Answered(0.0, error="gone")], 5.0) == {}
    figures = energy_of([good, good, Answered(0.0, error="gone")], 64.0)
    assert figures == {"joules_per_request": 32.0, "joules_per_1000_tokens": 250.0}
    assert not list(tables.energy(found()))
    one = Case(1, "1024x1024", 16)
    assert list(tables.energy({"http": {str(one): clients(one, **figures)}})) == [
        ("energy, clients x prompt", "J per request", "J per 1,000 tokens written"),
        (str(one), "32.0", "250"),
    ]


def test_goals_are_held_from_the_right_side_or_not_told() -> None:
    held = {goal["what"]: (goal["held"], goal.get("wish_held")) for goal in goals.held(found())}
    assert held["1 x 1024x1024: ttft_ms_p50"] == (False, None)
    assert held["1 x 1024x1024: tpot_ms_mean"] == (False, False)
    assert held["64 x 1024x1024: requests_per_s"] == (True, False)
    assert held["64 x 1024x1024: itl_ms_p99"] == (False, None)
    assert held["all clients' cases: recompilations_total"] == (False, None)
    assert "64 x text: requests_per_s" not in held
    assert goals.held({}) == []


def test_a_row_is_set_beside_its_floor() -> None:
    row = found()["http"]["64 x 1024x1024"]
    assert share_of_floor(row, found()) == pytest.approx(0.5, rel=0.03)
    repeated = row | {"case": row["case"] | {"kind": "same 1024x1024"}}
    assert share_of_floor(repeated, found()) is None


def test_tables_show_measured_figures_beside_vllms() -> None:
    text = journal.as_text(tables.TABLES, found())
    assert "64 x 1024x1024: requests_per_s" in text
    assert "17.03" in text, "of vLLM 0.24 on the same kind of card"
    cells = journal.table(tables.clients, found())
    assert "| 64 x 1024x1024 | 1 | 50.0 | 50.0 |" in cells


def test_every_table_can_be_made() -> None:
    step = {"rows": 1, "prompt": "text", "tokens": 128, "step_ms": 2.0, "p99_ms": 2.1}
    cell = {"ms": 0.5, "tflops": 400.0}
    case = Case(1, "text", 1)
    everything = found() | {
        "http": {str(case): clients(case, joules_per_request=9.0, joules_per_1000_tokens=70.0)},
        "options": {"settings": {"QWEN_VL_PREFILL_CHUNK": "2048"}},
        "ours": {
            "decode steps": [step],
            "read at once": [step | {"step_ms": 2.5}],
            "first tokens": {"text": {"ms": 9.0}},
            "prepare_ms": {"text": 1.0},
        },
        "peer": {
            "load_s": 3.0,
            "transformers static, 1 x text": {"ttft_ms": 20.0, "tpot_ms": 6.8},
        },
        "attention": {"prompt": {"FlashAttention 2": cell, "cuDNN": {"ms": None}}},
        "accuracy": {
            "text": {
                "peer to float32": 0.01, "ours to float32": 0.009, "ours to peer": 0.012,
                "peer as float32": 0.95, "ours as float32": 1.0,
            },
            "as near as the peer": {"text": True},
        },
        "soak": {
            "rounds": [{"requests": 0, "failed": 0, "host_bytes": 2**30, "device_bytes": None}]
        },
    }  # fmt: skip
    for name, make in tables.TABLES.items():
        head, rule, *rows = journal.table(make, everything).splitlines()
        assert rows, name
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}, name
    assert "| 1 | 2.50 | 2.00 | +25 % |" in journal.table(tables.syncing, everything)
    assert "| text | 9.0 | - |" not in journal.table(tables.firsts, everything)
    compiling = journal.table(tables.compiling, everything)
    assert "| here, in process | text | 10.0 | 2.00 |" in compiling


# -- a run -----------------------------------------------------------------------------------------
def test_a_part_that_no_time_is_left_for_says_so(tmp_path: Path) -> None:
    run = BenchmarkRun(tmp_path / "found.json", budget_s=0)
    qwen_vl.run_parts(run, OPTIONS, ["http"])
    assert run.found["left_out"] == ["http"]
    assert run.found["failed"] == {}


def test_a_part_that_dies_is_told_and_what_was_found_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run = BenchmarkRun(out, budget_s=60)
    qwen_vl.run_parts(run, OPTIONS, ["nonsense", "vllm"])
    kept = json.loads(out.read_text())
    assert kept["failed"] == {"nonsense": "exit code 1"}
    assert kept["vllm"] == {"was not": "vllm cannot be imported here"}
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_that_was_cut_short_prints_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "found.json")
    code = qwen_vl.main(["--toy", "--only", "http", "--budget", "0", "--out", out])
    assert code == 0
    assert "left out: http" in capsys.readouterr().out


def test_a_run_prints_what_was_not_measured_and_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_parts(run: BenchmarkRun, *_: object) -> None:
        run.found.update(found())

    monkeypatch.setattr(qwen_vl, "run_parts", run_parts)
    out = str(tmp_path / "found.json")
    assert qwen_vl.main(["--toy", "--only", "http", "--out", out]) == 1
    printed = capsys.readouterr().out
    assert "64 x 1024x1024: requests_per_s" in printed
    assert "vLLM was not measured: vllm cannot be imported here" in printed
    assert "left out: soak" in printed
    assert "FAILED ours: exit code 1" in printed


def test_the_command_line_is_what_the_parts_are_told() -> None:
    asked = qwen_vl.read_options(["--toy", "--only", "http", "--set", "QWEN_VL_PREFILL_CHUNK=64"])
    options = QwenVLOptions.of(asked.options.as_json())
    assert asked.names == ["http"]
    assert options.device == "cpu"
    assert options.server_settings()["QWEN_VL_PREFILL_CHUNK"] == "64"
    assert options.server_settings()["QWEN_VL_SLOTS"] == "4"
    with pytest.raises(SystemExit):
        qwen_vl.read_options(["--only", "nonsense"])


def test_figures_are_written_with_four_digits() -> None:
    assert rounded({"a": [1.23456, 7], "b": None}) == {"a": [1.235, 7], "b": None}
