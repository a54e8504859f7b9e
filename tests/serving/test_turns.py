"""Whose turn it is inside an engine."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.accounts import Account
from predictors.serving.job import Job
from predictors.serving.turns import CREDIT_STEPS, SlotHolders


def job_of(account: Account) -> Job[Any, Any]:
    job: Job[Any, Any] = Job("x", None)
    job.account = account
    return job


def holders_of(*accounts: Account) -> tuple[SlotHolders, list[Job[Any, Any]]]:
    """Each of these with one slot."""
    holders, jobs = SlotHolders(), [job_of(account) for account in accounts]
    for job in jobs:
        holders.add(job)
    return holders, jobs


@given(
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 80))),
    st.integers(0, 64),
)
def test_places_are_dealt_to_those_who_have_used_least(
    found: list[tuple[float, float, int]], places: int
) -> None:
    accounts = [Account(str(i), weight) for i, (_, weight, _) in enumerate(found)]
    holders, jobs = holders_of(*accounts)
    used = {}
    for job, (seconds, weight, _) in zip(jobs, found, strict=True):
        holders.charge(job, seconds)
        used[job.account.name] = seconds / weight
    wanted = {str(i): n for i, (_, _, n) in enumerate(found)}
    got = holders.deal(wanted, places, 0.01)
    assert sum(got.values()) == min(places, sum(wanted.values()))
    assert all(0 <= got[name] <= n for name, n in wanted.items())
    cost = {account.name: 0.01 / account.weight for account in accounts}
    after = {name: used[name] + got[name] * cost[name] for name in wanted}
    for name, n in wanted.items():
        if got[name] < n:  # no other got its last place while it was ahead of this one
            others = [other for other in wanted if got[other]]
            assert all(after[other] - cost[other] <= after[name] + 1e-9 for other in others)


def test_equal_callers_take_turns_and_the_share_follows_weights() -> None:
    holders, jobs = holders_of(Account("a"), Account("b", 3.0))
    assert holders.is_shared
    assert [holders.share(job.account) for job in jobs] == [0.25, 0.75]
    assert list(holders.ranks()) == ["b", "a"]  # of equals the latest first
    holders.charge(jobs[1], 1.0)
    assert list(holders.ranks()) == ["a", "b"]
    holders.charge(jobs[0], 1.0)
    assert list(holders.ranks()) == ["b", "a"]
    holders.remove(jobs[0])
    assert not holders.is_shared
    assert holders.share(jobs[1].account) == 1.0
    assert jobs[0].account.used_s == 1.0


def test_a_newcomer_starts_level_whatever_the_queue_counts_for_it() -> None:
    holders, jobs = holders_of(Account("old", used_s=50.0))
    holders.charge(jobs[0], 10.0)
    new = job_of(Account("new", used_s=500.0))
    holders.add(new)
    assert list(holders.ranks()) == ["new", "old"]
    holders.charge(new, 0.2)
    assert list(holders.ranks()) == ["old", "new"]


def test_who_leaves_and_comes_back_still_owes_what_it_used() -> None:
    holders, jobs = holders_of(Account("old"))
    came = 0
    for _ in range(100):
        other = job_of(Account("quick"))
        holders.add(other)
        if next(iter(holders.ranks())) == "quick":
            came += 1
            holders.charge(other, 1.0)
        else:
            holders.charge(jobs[0], 1.0)
        holders.remove(other)
    assert came == 50
    holders.remove(jobs[0])
    holders.add(jobs[0])
    assert holders.ranks() == {"old": 0}


def test_what_a_caller_does_not_use_is_not_saved_for_later() -> None:
    holders, (busy, quiet) = holders_of(Account("busy"), Account("quiet"))
    for _ in range(1000):
        holders.charge(busy, 0.99)
        holders.charge(quiet, 0.01)
        holders.end_step(1.0)
    burst = 0
    while holders.ranks()["quiet"] == 0:
        holders.charge(quiet, 1.0)
        holders.end_step(1.0)
        burst += 1
    assert burst <= CREDIT_STEPS + 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 3.0)), min_size=40, max_size=80))
def test_two_who_both_wait_get_the_same_seconds(steps: list[tuple[bool, float]]) -> None:
    """Each step goes to the one at turn; `steps` are the seconds a step takes, by caller."""
    holders, jobs = holders_of(Account("a"), Account("b"))
    for is_longer, seconds in steps:
        at_turn = jobs[next(iter(holders.ranks())) == "b"]
        took = seconds * (2.0 if is_longer and at_turn is jobs[0] else 1.0)
        holders.charge(at_turn, took)
        holders.end_step(took)
    assert abs(jobs[0].account.used_s - jobs[1].account.used_s) <= 6.0 + 1e-9
