"""A server whose device is a clock streams whole answers, no faster than its device."""

from __future__ import annotations

import json

import pytest

from benchmarks.prefill_steps import pass_times
from benchmarks.serving import clocked_chat


def test_every_answer_is_whole_and_no_token_comes_before_its_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["x", "--clients=2", "--requests=6", "--rounds=1", "--probe"]
    monkeypatch.setattr("sys.argv", asked)
    clocked_chat.main()
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    step_ms = 1e3 * pass_times("mixed").decode_s(1)
    assert figures["failed"] == 0
    assert figures["tpot_ms_mean"] > step_ms
    assert figures["event loop, ms per step"] > 0
    assert "2 x text: without prompts" in printed
    assert "token to event loop" in printed
