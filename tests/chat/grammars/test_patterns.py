from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from predictors.chat.grammars.lark import check_grammar
from predictors.chat.grammars.patterns import check_pattern
from predictors.errors import InvalidRequest, TooLarge


@pytest.mark.parametrize(
    "pattern",
    [
        "a{10000}",
        "[a-z ]{1,5000}",
        r"(?:\p{L}{1,50} ){1,100}",
        r"^[[:alpha:]\]\[{9999999}]+$",
        r"\{99999\}",
        "(?i)(?P<name>a|b){3}",
        "a{,3}b{2,}",
        "(" * 199 + "a" + ")" * 199,
        ")))",  # the library says what is wrong with these
        "[a",
        "a\\",
    ],
)
def test_a_pattern_of_bounded_size_is_taken(pattern: str) -> None:
    check_pattern("regex", pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "a{10001}",
        "(a{200}){51}",
        "((a|b){3,100}c){100}",
        r"(?:[\]a{1}]\x{41}){5001}",
        "(?:(a{0,100}){0,100}){0,2}",
        "a{1,99999999999}",
        "(" * 201 + "a" + ")" * 201,
    ],
)
def test_a_pattern_that_is_large_once_written_out_is_refused(pattern: str) -> None:
    with pytest.raises(TooLarge):
        check_pattern("regex", pattern)


def test_white_space_in_a_pattern_would_hide_its_parts() -> None:
    with pytest.raises(InvalidRequest, match="flag x"):
        check_pattern("regex", "(?x) # [\n a{99999}")


@pytest.mark.parametrize(
    "part", ["(", "[", "\\", "a{", "{1", "(?", "[[", "\\p{", "{ ", '"', "/", "/a", '"a', "%", "a["]
)
def test_twice_the_text_takes_twice_the_steps(part: str) -> None:
    """Lines of Python that run; the expressions beside them never go back over a text."""
    for check in (check_pattern, check_grammar):
        steps = [_lines(check, part * count) for count in (1000, 2000)]
        assert steps[1] <= 2.1 * steps[0]


def _lines(check: Any, text: str) -> int:
    count = 0

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        check("where", text)
    except InvalidRequest:
        pass
    finally:
        sys.settrace(before)
    return count
