"""Outcomes of requests: counted exactly once, and exceptions as values."""

from __future__ import annotations

import asyncio

import pytest

from predictors import metrics
from predictors.protocol.outcomes import RequestRecord, result_or_error


def test_a_request_is_counted_once_however_often_it_ends() -> None:
    def count(reason: str) -> float:
        return metrics.requests_total.labels("counted", "v2_rest", "infer", reason)._value.get()

    times = iter([10.0, 12.5, 99.0])
    record = RequestRecord("v2_rest", "infer", clock=lambda: next(times))
    record.model = "counted"
    record.end("ok")
    record.end("internal")
    assert (count("ok"), count("internal")) == (1, 0)
    seconds = metrics.request_seconds.labels("counted", "v2_rest", "ok")
    assert seconds._sum.get() == 2.5


def test_a_request_without_a_known_model_is_counted_as_unknown() -> None:
    def count() -> float:
        series = metrics.requests_total.labels("unknown", "v2_rest", "infer", "not_found")
        return series._value.get()  # type: ignore[no-any-return]

    before = count()
    RequestRecord("v2_rest", "infer").end("not_found")
    assert count() == before + 1


async def test_an_exception_is_returned_and_a_cancellation_raised() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise KeyError("x")

    async def stopped() -> int:
        raise asyncio.CancelledError

    assert await result_or_error(good()) == 7
    assert isinstance(await result_or_error(bad()), KeyError)
    with pytest.raises(asyncio.CancelledError):
        await result_or_error(stopped())
