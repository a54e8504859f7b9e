"""Request ids, deadlines and timeouts of a call."""

from __future__ import annotations

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.call import (
    MAX_TIMEOUT_S,
    Call,
    clean_request_id,
    parse_priority,
    parse_timeout,
)


def clock() -> float:
    return 100.0


def test_header_names_become_lower_case_and_the_callers_id_is_kept() -> None:
    call = Call.of({"X-Request-Id": "abc", "Accept": "x"}, protocol="v2_grpc")
    assert call == {"x-request-id": "abc", "accept": "x"}
    assert (call.request_id, call.protocol, call.deadline) == ("abc", "v2_grpc", None)


@pytest.mark.parametrize("raw", [None, "", "a b", "x" * 129, "naïve", "tab\there", "line\nbreak"])
def test_an_id_that_would_not_survive_headers_and_logs_is_replaced(raw: str | None) -> None:
    found = clean_request_id(raw)
    assert found != raw
    assert len(found) == 32
    assert found != clean_request_id(raw)


def test_the_deadline_is_the_callers_else_the_default_else_none() -> None:
    given = Call.of({"x-request-timeout-ms": "1500"}, default_timeout_s=600.0, clock=clock)
    default = Call.of({}, default_timeout_s=600.0, clock=clock)
    none = Call.of(None, clock=clock)
    assert (given.deadline, default.deadline, none.deadline) == (101.5, 700.0, None)


def test_a_deadline_is_brought_forward_and_never_pushed_back() -> None:
    call = Call({}, protocol="v2_rest")
    call.tighten(10.0, clock)
    assert call.deadline == 110.0
    call.tighten(20.0, clock)
    assert call.deadline == 110.0
    call.tighten(5.0, clock)
    assert call.deadline == 105.0


@pytest.mark.parametrize("raw", [1500, 1500.0, "1500", " 1500 ", "1.5e3"])
def test_a_timeout_is_a_number_or_a_numeric_string(raw: object) -> None:
    assert parse_timeout(raw, "timeout", unit_s=1e-3) == pytest.approx(1.5)


def test_a_timeout_beyond_a_day_is_a_day() -> None:
    assert parse_timeout(1e300, "timeout", unit_s=1.0) == MAX_TIMEOUT_S


@pytest.mark.parametrize("raw", [0, -1, "", "soon", "nan", "inf", True, None, [], 10**400, "-0"])
def test_any_other_timeout_is_refused(raw: object) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a positive number") as caught:
        parse_timeout(raw, "timeout", unit_s=1e-3)
    assert caught.value.param == "timeout"


LEVELS = [
    (0, 0), (1, 4), (4, 1), (5, 0), (6, -1), (10, -5), (11, -5), (2**64 - 1, -5),
    ("0", 0), (" 1 ", 4), ("18446744073709551615", -5), (2.0, 3), ("007", -2),
]  # fmt: skip


@pytest.mark.parametrize(("level", "priority"), LEVELS)
def test_a_level_of_one_goes_first_and_none_is_the_middle(level: object, priority: int) -> None:
    assert parse_priority(level, "priority") == priority


NO_LEVELS = [
    -1, 1.5, True, False, None, [], "", "-1", "+1", "1.0", "high", "1e3", "0x1", "\u0661", "1 2",
    2**64, "18446744073709551616", "9" * 1000, float("nan"), float("inf"), -0.5,
]  # fmt: skip


@pytest.mark.parametrize("level", NO_LEVELS)
def test_any_other_level_is_refused(level: object) -> None:
    with pytest.raises(InvalidRequest, match="priority must be a whole number from 0") as caught:
        parse_priority(level, "priority")
    assert caught.value.param == "priority"


def test_the_priority_comes_from_the_header_and_is_zero_without() -> None:
    assert Call.of({"X-Request-Priority": "1"}).priority == 4
    assert Call.of({}).priority == 0
    with pytest.raises(InvalidRequest, match="x-request-priority"):
        Call.of({"X-Request-Priority": "first"})
