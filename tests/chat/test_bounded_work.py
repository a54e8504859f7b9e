"""Code of a folder is stopped after a number of lines, or once it has taken much memory."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

import pytest

from predictors.chat import bounded_work
from predictors.chat.bounded_work import TooMuchWork, limited_work


@pytest.fixture(autouse=True)
def few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_work, "MOST_EVENTS", 20_000)


def test_an_endless_loop_is_stopped_and_what_traced_before_goes_on() -> None:
    before = sys.gettrace()
    with pytest.raises(TooMuchWork), limited_work():
        _loop()
    assert sys.gettrace() is before


def test_code_that_swallows_exceptions_is_stopped_too() -> None:
    def stubborn() -> None:
        while True:
            with suppress(Exception):  # as Jinja's optimiser does
                _loop()

    with pytest.raises(TooMuchWork), limited_work():
        stubborn()


def test_text_that_doubles_is_stopped_before_it_fills_the_memory() -> None:
    def double() -> None:
        text = "x"
        while True:
            text += text

    with pytest.raises(TooMuchWork), limited_work():
        double()


def test_memory_that_the_process_once_held_hides_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_work, "MOST_MEMORY_KIB", 64 * 1024)
    held = bytearray(512 * 2**20)
    held[:: resource.getpagesize()] = bytes(len(held[:: resource.getpagesize()]))
    del held
    longest = 0

    def double() -> None:
        nonlocal longest
        text = "x"
        while True:
            text += text
            longest = len(text)

    with pytest.raises(TooMuchWork), limited_work():
        double()
    assert longest <= 256 * 2**20


def test_work_within_the_limits_is_done() -> None:
    with limited_work():
        assert sum(each for each in range(1000)) == 499_500


def _loop() -> None:
    while True:
        pass
