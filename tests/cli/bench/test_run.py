"""`bench` against servers: ours, a foreign one, one that refuses, none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from predictors.__main__ import main
from predictors.cli.child import held_ports
from predictors.cli.outcomes import FAILED, NO_SERVER, REFUSED
from tests.cli.foreign import foreign_server, json_answer, vllm_like

BRIEF = ["--seconds", "600", "--requests"]  # the number ends it, not the time


def reported(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_foreign_chat_server_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "new" / "plot.svg"
    with foreign_server() as url:
        flags = [*BRIEF, "20", "--clients", "3", "--plot", str(plot)]
        assert main(["bench", f"{url}/v1", *flags, "--json"]) == 0
        report = reported(capsys)
        assert main(["bench", url, *BRIEF, "5"]) == 0
    assert report["url"] == url
    assert (report["requests"], report["answered"]) == (20, 20)
    rounding = 0.0006 * report["tokens_per_s"]  # seconds have three places, and may be few
    assert report["tokens_per_s"] * report["seconds"] == pytest.approx(60, abs=rounding)
    assert report["errors"] == {}
    for kind in ("ttft_ms", "tpot_ms", "itl_ms", "latency_ms"):
        assert 0 <= report[kind]["p50"] <= report[kind]["p95"] <= report[kind]["p99"]
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")
    assert f"{url}: 5 of 5 requests answered" in capsys.readouterr().out


def test_an_open_loop_sends_what_arrives_and_counts_refusals_by_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(method: str, path: str, body: Any) -> Any:
        if path.endswith("/completions"):
            return json_answer(503, {"error": {"message": "the queue is full"}})
        return vllm_like(method, path, body)

    with foreign_server(full) as url:
        flags = [*BRIEF, "12", "--rate", "500", "--json"]
        assert main(["bench", url, *flags]) == FAILED
        report = reported(capsys)
    assert report["errors"] == {"503": 12}
    assert report["error_words"] == {"503": "the queue is full"}
    assert report["answered"] == 0


def test_a_server_compared_with_itself_prints_ratios_with_their_intervals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with foreign_server() as url:
        flags = [*BRIEF, "40", "--compare", url, "--rounds", "4"]
        assert main(["bench", url, *flags, "--json"]) == 0
        report = reported(capsys)
        assert main(["bench", url, *flags]) == 0
    assert report["first"]["requests"] == report["other"]["requests"] == 40
    for each in report["ratios"].values():
        low, high = each["interval_95"]
        assert 0 < low <= each["ratio"] <= high
        assert len(each["rounds"]) == 4
    assert {"rate", "latency p50", "ttft p50"} <= report["ratios"].keys()
    assert "95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--goodput", "ttft"], "--goodput takes"),
        (["--goodput", "e2e:5"], "--goodput takes"),
        (["--goodput", "ttft:-5"], "--goodput takes"),
        (["--mix", "/nonexistent.yaml"], "can't be read"),
        (["--parameter", "x"], "--parameter takes"),
    ],
)
def test_wrong_flags_of_bench_are_refused_in_a_sentence(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "http://127.0.0.1:1", *flags]) == REFUSED
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("named", [[], ["--name", "x"]], ids=["asked for models", "not asked"])
def test_a_dead_server_is_one_sentence(
    named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with held_ports(1) as (port,):
        assert main(["bench", f"http://127.0.0.1:{port}", "--seconds", "1", *named]) == NO_SERVER
    assert capsys.readouterr().err.count("\n") == 1


def test_the_client_verbs_need_neither_torch_nor_kserve() -> None:
    code = (
        "import sys; from predictors.__main__ import main; "
        "main(['bench', 'http://127.0.0.1:1', '--name', 'x', '--plot', '/nonexistent/x']); "
        "main(['draw', 'x', '-o', '/nonexistent/x.png', '--url', 'http://127.0.0.1:1']); "
        "sys.exit(bool({'torch', 'kserve', 'grpc', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
