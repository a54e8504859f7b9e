"""The small part of `make load`, for CI: 1,500 requests with leavers, slow readers and writers, and
three SIGTERMs. It asserts counts and bytes, never times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.load import sigterm
from tests.load.flat import counts
from tests.load.generator import Plan
from tests.load.runs import FOLDER, run, solo_file
from tests.load.target import Cores, Target

REQUESTS = 1500
RATE = 60.0
DEADLINES = ((1.0, 120.0),)
SEED = 20


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target(FOLDER / "ci.log", Cores.split()) as started:
        yield started


def some(target: Target, requests: int, seed: int) -> dict[str, object]:
    solo = solo_file(target, "small")
    plan = Plan(
        target.port, target.grpc_port, "small", seed, 600.0, RATE, most=requests, leavers=0.3,
        slow_readers=0.05, slow_writers=0.05, compared=0.2, deadlines_s=DEADLINES, solo=str(solo),
    )  # fmt: skip
    records = run(plan, target.cores, "ci")
    target.wait_idle()
    return counts(records)


def test_every_request_is_answered_with_the_bytes_it_has_alone(target: Target) -> None:
    some(target, REQUESTS // 5, SEED)  # caches, heaps and thread pools have their size then
    before = target.settled()
    found = some(target, REQUESTS - REQUESTS // 5, SEED + 1)
    assert (found["unanswered"], found["failed"], found["wrong"]) == (0, 0, 0), found
    assert found["compared"] >= 50, found  # type: ignore[operator]
    assert set(found["protocols"]) == {"rest", "grpc", "openai"}  # type: ignore[call-overload]
    assert set(found["manners"]) == {"leaver", "slow reader", "slow writer"}  # type: ignore[call-overload]
    after = target.settled()
    assert after.fds <= before.fds + 2
    assert after.processes == before.processes
    assert after.threads <= before.threads + 4  # pools of threads grow to their limit


def test_three_signals_lose_nothing() -> None:
    found = sigterm.all_cases(Cores.split(), 3, 30.0, SEED, at_once=3)
    for each in found:
        assert each["exit_code"] == 0, each
        # the grace period that non-readers use up is short: on a busy machine it ends before the
        # work of others is done
        assert each["lost"] == [] or each["with_non_readers"], each
        assert set(each["protocols"]) == {"rest", "grpc", "openai", "streams"}
    assert sum(each["fates"].get("answered", 0) for each in found) > 0
