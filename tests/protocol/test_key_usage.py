"""The limits of a key, and the series of callers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.errors import InvalidRequest, QuotaExceeded
from predictors.protocol.call import Call
from predictors.protocol.key_file import ApiKey, digest_of
from predictors.protocol.key_usage import OTHER, Bucket, KeyUsage, KeyUsages
from predictors.protocol.outcomes import RequestRecord


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def usage_of(clock: Clock, **limits: float) -> KeyUsage:
    usages = KeyUsages(clock)
    key = ApiKey("ann", digest_of("x"), **limits)  # type: ignore[arg-type]
    usages.update([key])
    return usages.of(key)


def test_a_minutes_requests_may_come_at_once_and_then_at_their_rate(clock: Clock) -> None:
    usage = usage_of(clock, requests_per_minute=3.0)
    for _ in range(3):
        usage.begin_request()
    with pytest.raises(QuotaExceeded, match="3 requests per minute are used up") as caught:
        usage.begin_request()
    assert caught.value.retry_after_s == 20
    clock.now += 20.0
    usage.begin_request()
    with pytest.raises(QuotaExceeded):
        usage.begin_request()


def test_a_rate_below_one_in_a_minute_lets_one_pass_at_a_time(clock: Clock) -> None:
    usage = usage_of(clock, requests_per_minute=0.5)
    usage.begin_request()
    with pytest.raises(QuotaExceeded) as caught:
        usage.begin_request()
    assert caught.value.retry_after_s == 120
    clock.now += 120.0
    usage.begin_request()


def test_engine_seconds_are_paid_after_the_request_and_owed_before_the_next(clock: Clock) -> None:
    usage = usage_of(clock, engine_seconds_per_minute=6.0)
    usage.begin_request()
    usage.begin_jobs(1)
    usage.end_request("ok", 1, 12.0)  # 6 more than there are
    with pytest.raises(QuotaExceeded, match="6 engine seconds per minute") as caught:
        usage.begin_request()
    assert caught.value.retry_after_s == 60
    clock.now += 59.0
    with pytest.raises(QuotaExceeded):
        usage.begin_request()
    clock.now += 1.5
    usage.begin_request()


def test_jobs_that_wait_or_run_are_bounded_and_free_their_places(clock: Clock) -> None:
    usage = usage_of(clock, max_jobs=4)
    usage.begin_jobs(3)
    with pytest.raises(QuotaExceeded, match="3 jobs wait or run, 2 more would exceed 4"):
        usage.begin_jobs(2)
    usage.begin_jobs(1)
    usage.end_request("ok", 3, 0.0)
    usage.begin_jobs(3)
    with pytest.raises(InvalidRequest, match="the request has 5 jobs; the API key may have 4"):
        usage.begin_jobs(5)
    assert usage.open_jobs == 4


def test_a_call_counts_its_jobs_only_if_they_were_allowed(clock: Clock) -> None:
    call = Call({}, protocol="v2_rest")
    call.usage = usage_of(clock, max_jobs=2)
    call.begin_jobs(2)
    with pytest.raises(QuotaExceeded):
        call.begin_jobs(1)
    assert call.num_jobs == 2


@pytest.mark.parametrize("reason", metrics.REASONS)
def test_however_a_request_ends_its_jobs_end_once(clock: Clock, reason: str) -> None:
    call = Call({}, protocol="v2_rest")
    usage = usage_of(clock)
    call.usage = usage
    record = RequestRecord("v2_rest", "infer", call)
    call.begin_jobs(2)
    call.used_s = 1.5
    before = sample("caller_engine_seconds_total", caller="ann")
    record.end(reason)
    record.end("ok")
    assert usage.open_jobs == 0
    assert sample("caller_engine_seconds_total", caller="ann") == before + 1.5
    outcome = metrics.OUTCOME_OF[reason]
    assert sample("caller_requests_total", caller="ann", outcome=outcome) >= 1


def test_every_reason_has_an_outcome_of_callers() -> None:
    assert metrics.OUTCOME_OF.keys() == set(metrics.REASONS)
    assert set(metrics.OUTCOME_OF.values()) == set(metrics.CALLER_OUTCOMES)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50), st.floats(0.01, 100))
def test_a_bucket_gives_no_more_than_a_minutes_worth_and_its_rate(
    events: list[tuple[float, float]], per_minute: float
) -> None:
    now = start = 5.0
    bucket, taken = Bucket(per_minute, start), 0.0
    for pause, amount in events:
        now += pause
        if bucket.wait_s(amount, now) == 0.0:
            bucket.take(amount, now)
            taken += amount
    most = max(1.0, per_minute) + per_minute * (now - start) / 60
    assert taken <= most * (1 + 1e-9) + 1e-9


@given(st.floats(0.01, 1000), st.floats(0.0, 1000))
def test_after_the_wait_that_a_bucket_names_it_holds_enough(rate: float, amount: float) -> None:
    bucket = Bucket(rate, 0.0)
    bucket.take(1000.0, 0.0)
    amount = min(amount, max(1.0, rate))
    wait_s = bucket.wait_s(amount, 0.0)
    assert bucket.wait_s(amount, wait_s + 1e-6 * (1 + wait_s)) == 0.0
    assert math.isfinite(wait_s)


# -- series ----------------------------------------------------------------------------------------
def sample(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(f"predictors_{name}", labels)
    return 0.0 if found is None else found


def callers_in_series() -> set[str]:
    found = [sample.labels for family in REGISTRY.collect() for sample in family.samples]
    return {labels["caller"] for labels in found if "caller" in labels}


def test_a_caller_has_its_series_from_the_start_and_none_after_its_key_is_gone() -> None:
    usages = KeyUsages()
    key = ApiKey("comer", digest_of("x"))
    usages.update([key])
    assert {"comer", OTHER} <= callers_in_series()
    usages.update([ApiKey("stayer", digest_of("y"))])
    assert "comer" not in callers_in_series()
    usages.update([])


def test_a_request_that_outlives_its_key_is_counted_under_other() -> None:
    usages = KeyUsages()
    key = ApiKey("leaver", digest_of("x"))
    usages.update([key])
    usage = usages.of(key)
    jobs, requests = (
        sample("caller_jobs", caller=OTHER),
        sample("caller_requests_total", caller=OTHER, outcome="ok"),
    )
    usage.begin_jobs(2)
    usages.update([])
    assert sample("caller_jobs", caller=OTHER) == jobs + 2
    usage.end_request("ok", 2, 0.5)
    assert sample("caller_jobs", caller=OTHER) == jobs
    assert sample("caller_requests_total", caller=OTHER, outcome="ok") == requests + 1
    assert "leaver" not in callers_in_series()


def test_a_thousand_reloads_with_other_names_leave_no_series() -> None:
    usages, before = KeyUsages(), callers_in_series()
    for i in range(1000):
        usages.update([ApiKey(f"name-{i}", digest_of(f"{i}"))])
    usages.update([])
    assert callers_in_series() == before | {OTHER}


def test_a_name_that_comes_back_has_the_jobs_that_still_run(clock: Clock) -> None:
    usages = KeyUsages(clock)
    key = ApiKey("ann", digest_of("x"), max_jobs=4)
    usages.update([key])
    usages.of(key).begin_jobs(3)
    usages.update([])
    usages.update([key])
    back = usages.of(key)
    assert (back.label, metrics.caller_jobs.labels("ann")._value.get()) == ("ann", 3)
    with pytest.raises(QuotaExceeded, match="3 jobs wait or run"):
        back.begin_jobs(2)
    back.end_request("ok", 3, 0.0)
    back.begin_jobs(4)
    back.end_request("ok", 4, 0.0)
    usages.update([])
    usages.update([key])
    assert usages.of(key) is not back


def test_limits_that_change_hold_for_the_next_request_and_jobs_stay(clock: Clock) -> None:
    usages = KeyUsages(clock)
    key = ApiKey("ann", digest_of("x"), max_jobs=4)
    usages.update([key])
    usage = usages.of(key)
    usage.begin_jobs(3)
    usages.update([ApiKey("ann", digest_of("y"), max_jobs=2)])
    assert usages.of(key) is usage
    with pytest.raises(QuotaExceeded):
        usage.begin_jobs(1)
    usage.end_request("ok", 3, 0.0)
    usage.begin_jobs(2)


def test_a_reload_without_a_change_does_not_refill_what_was_used(clock: Clock) -> None:
    usages = KeyUsages(clock)
    key = ApiKey("ann", digest_of("x"), requests_per_minute=1.0)
    usages.update([key])
    usages.of(key).begin_request()
    usages.update([key])
    with pytest.raises(QuotaExceeded):
        usages.of(key).begin_request()


def test_a_key_that_goes_out_of_use_while_its_request_begins_is_still_served() -> None:
    usage = KeyUsages().of(ApiKey("gone", digest_of("x")))
    usage.begin_request()
    usage.begin_jobs(1)
    usage.end_request("ok", 1, 0.0)
    assert "gone" not in callers_in_series()
