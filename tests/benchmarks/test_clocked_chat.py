"""A server whose device is a clock streams whole answers, no faster than its device."""

from __future__ import annotations

import json

import pytest

from benchmarks.prefill_steps import pass_times
from benchmarks.serving import clocked_chat


def test_every_answer_is_whole_and_no_token_comes_before_its_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--clients=2", "--requests=6", "--rounds=1"])
    clocked_chat.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    step_ms = 1e3 * pass_times("mixed").decode_s(1)
    assert figures["failed"] == 0
    assert figures["tpot_ms_mean"] > step_ms
    assert figures["loop_ms_per_step"] > 0
