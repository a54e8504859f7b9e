"""The one line that says that everything is ready, and where."""

from __future__ import annotations

import logging

import pytest

from predictors.operators.starting import ReadyLine, address_of
from predictors.serving.lifecycle import State


def test_one_line_says_that_all_models_are_ready_and_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = ReadyLine(["flux", "qwen-vl"], lambda: "http://127.0.0.1:8080/")
    with caplog.at_level(logging.INFO, "predictors"):
        line.report("flux", State.WARMING)
        line.report("flux", State.READY)
        line.report("flux", State.READY)
        assert caplog.messages == []
        line.report("qwen-vl", State.READY)
        line.report("qwen-vl", State.READY)
    assert caplog.messages == ["ready: flux, qwen-vl at http://127.0.0.1:8080/"]


@pytest.mark.parametrize(
    ("host", "is_secure", "address"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8080/"),
        ("0.0.0.0", True, "https://127.0.0.1:8080/"),
        ("::", False, "http://[::1]:8080/"),
        ("models.example", False, "http://models.example:8080/"),
    ],
)
def test_the_address_is_one_that_a_browser_here_can_open(
    host: str, is_secure: bool, address: str
) -> None:
    assert address_of(host, 8080, is_secure=is_secure) == address
