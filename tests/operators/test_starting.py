"""The one line that says that everything is ready, and where."""

from __future__ import annotations

import logging

import pytest

from predictors.operators.starting import address_of, report_ready


def test_one_line_says_that_all_models_are_ready_and_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "predictors"):
        report_ready(["flux", "qwen-vl"], "http://127.0.0.1:8080/")
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
