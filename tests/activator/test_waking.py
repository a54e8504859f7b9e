"""The bounds of what waits for a model, in number, bytes and time, and the calls that wake it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from predictors.activator.waking import UNKNOWN_START_S, WaitingRoom
from predictors.errors import WakeTimeout
from tests.activator.scripted import BRISK, PATIENCE_S, Rig, activated, sample

KIB = 1024


@pytest.fixture
def bounded() -> Iterator[Rig]:
    """At most two requests wait, with 64 KiB together. The model does not start by itself."""
    with activated(replace(BRISK, max_held=2, max_held_bytes=64 * KIB)) as rig:
        yield rig


def said(reply: httpx.Response) -> str:
    error: Any = reply.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_one_request_more_than_may_wait_is_refused_at_once_in_its_own_protocol(
    bounded: Rig,
) -> None:
    waiting = [bounded.later(bounded.post) for _ in range(2)]
    bounded.scale.wait_held(2)
    v2, openai = bounded.post(), bounded.post("/v1/chat/completions")
    for reply in (v2, openai):
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert "2 requests wait for it already, which is the limit" in said(reply)
    assert isinstance(v2.json()["error"], str)
    assert openai.json()["error"]["code"] == "server_overloaded"
    bounded.model.start()
    assert [each.result(PATIENCE_S).status_code for each in waiting] == [200, 200]
    assert bounded.total("queue_full") == 1
    assert bounded.total("queue_full", "openai") == 1


def test_bodies_that_wait_share_a_bound_in_bytes(bounded: Rig) -> None:
    first = bounded.later(bounded.post, "/a", b"x" * 40 * KIB)
    bounded.scale.wait_for(lambda: sample("held_bytes", bounded.scale.name) == 40 * KIB)
    refused = bounded.post("/b", b"y" * 40 * KIB)
    assert refused.status_code == 503
    assert f"over {64 * KIB} bytes, which is the limit" in said(refused)
    small = bounded.later(bounded.post, "/c", b"z" * 8 * KIB)
    bounded.scale.wait_for(lambda: sample("held_bytes", bounded.scale.name) == 48 * KIB)
    bounded.model.start()
    assert first.result(PATIENCE_S).status_code == small.result(PATIENCE_S).status_code == 200
    assert {len(seen.body) for seen in bounded.model.seen} == {40 * KIB, 8 * KIB}
    assert sample("held_bytes", bounded.scale.name) == 0


def test_a_body_of_unknown_length_is_refused_when_it_grows_too_large(bounded: Rig) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 8 * KIB

    refused = bounded.post("/", parts())
    assert refused.status_code == 503
    bounded.stop()
    assert sample("held_bytes", bounded.scale.name) == 0
    assert sample("requests_held", bounded.scale.name) == 0


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/openai/v1/images/generations"])
def test_a_request_waits_no_longer_than_the_bound_and_may_come_again(path: str) -> None:
    with activated(replace(BRISK, max_wait_s=0.2)) as rig:
        reply = rig.post(path)
        assert reply.status_code == 504
        assert int(reply.headers["retry-after"]) >= 1
        assert "x-should-retry" not in reply.headers  # nothing was computed
        assert "did not start within 0.2 s" in said(reply)
        rig.model.start()
        times = 1
        while (reply := rig.post(path)).status_code == 504:  # a busy machine took too long again
            times += 1
        assert reply.status_code == 200
        protocol = "openai" if path.startswith("/openai") else "v2_rest"
        assert rig.total("deadline", protocol) == times


def test_a_callers_own_timeout_ends_its_wait_and_nobody_elses() -> None:
    with activated() as rig:
        patient = rig.later(rig.post)
        rig.scale.wait_held(1)
        with rig.client() as http:
            hasty = http.post("/", headers={"x-request-timeout-ms": "50"})
            wrong = http.post("/", headers={"x-request-timeout-ms": "soon"})
        assert (hasty.status_code, wrong.status_code) == (504, 400)
        rig.model.start()
        assert patient.result(PATIENCE_S).status_code == 200


def test_a_caller_that_leaves_while_it_is_held_gives_its_place_and_bytes_back() -> None:
    with activated() as rig:
        stays = rig.later(rig.post, "/stays")
        rig.scale.wait_held(1)
        with rig.connect() as sock:
            sock.sendall(b"POST /leaves HTTP/1.1\r\nHost: m\r\nContent-Length: 3\r\n\r\nbye")
            rig.scale.wait_held(2)
        rig.scale.wait_held(1)
        rig.model.start()
        assert stays.result(PATIENCE_S).status_code == 200
        assert [seen.target for seen in rig.model.seen] == [b"/stays"]
        assert rig.total("cancelled") == 1
        assert sample("held_bytes", rig.scale.name) == 0


def test_nobody_asks_the_scale_api_once_nobody_waits() -> None:
    with activated(replace(BRISK, max_wait_s=0.3)) as rig:
        while not rig.scale.calls:  # a busy machine may be too late to ask
            assert rig.post().status_code == 504
        pass_turns(rig)  # its answer may be here before the wake has ended
        calls = rig.scale.calls
        rig.stop()
        assert rig.scale.calls == calls


def pass_turns(rig: Rig) -> None:
    """Return once the activator's loop has done whatever it was about to do."""

    async def turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    loop = rig.server._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(turns(), loop).result(PATIENCE_S)


def test_replicas_that_something_sets_back_are_raised_again() -> None:
    with activated() as rig:
        reply = rig.later(rig.post)
        rig.scale.wait_for(lambda: sample("wakes_total", rig.scale.name) == 1)
        rig.scale.replicas = 0  # an autoscaler that has not seen the request yet
        rig.scale.wait_for(lambda: sample("wakes_total", rig.scale.name) == 2)
        rig.model.start()
        assert reply.result(PATIENCE_S).status_code == 200


def test_a_scale_api_that_fails_is_asked_again_and_a_model_that_starts_anyway_answers() -> None:
    with activated() as rig:
        rig.scale.failure = "no answer"
        reply = rig.later(rig.post)
        rig.scale.wait_for(lambda: rig.scale.calls >= 3)
        assert sample("scale_failures_total", rig.scale.name) >= 2
        rig.scale.failure = ""
        rig.scale.wait_for(lambda: sample("wakes_total", rig.scale.name) == 1)
        rig.model.start()
        assert reply.result(PATIENCE_S).status_code == 200


def test_retry_after_is_the_time_of_the_last_start_less_what_has_passed() -> None:
    """After one start of a fraction of a second the next refusal no longer guesses 30 s."""
    with activated(replace(BRISK, max_held=1)) as rig:
        began = time.monotonic()
        first = rig.later(rig.post)
        rig.scale.wait_held(1)
        guess = int(rig.post().headers["retry-after"])
        passed_s = time.monotonic() - began
        rig.model.start()
        assert first.result(PATIENCE_S).status_code == 200
        assert UNKNOWN_START_S - passed_s <= guess <= UNKNOWN_START_S


def test_the_end_of_the_process_refuses_what_is_still_held() -> None:
    with activated(drain_timeout_s=0.2) as rig:
        held = rig.later(rig.post, "/v1/chat/completions")
        rig.scale.wait_held(1)
        rig.stop()
        reply = held.result(PATIENCE_S)
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "server_draining"
        assert "retry-after" in reply.headers
        assert rig.total("draining", "openai") == 1


def test_a_held_request_is_answered_if_the_model_starts_while_the_process_drains() -> None:
    with activated(drain_timeout_s=PATIENCE_S) as rig:
        held = rig.later(rig.post)
        rig.scale.wait_held(1)
        ended = threading.Thread(target=rig.stop)
        ended.start()
        rig.model.start()
        assert held.result(PATIENCE_S).status_code == 200
        ended.join(PATIENCE_S)


def test_a_refusal_has_no_address_in_it() -> None:
    with activated(replace(BRISK, max_wait_s=0.1)) as rig:
        assert "127.0.0.1" not in json.dumps(rig.post().json())


def test_the_model_is_told_how_much_of_the_callers_timeout_is_left() -> None:
    with activated() as rig, rig.client() as http:
        headers = {"x-request-timeout-ms": "60000"}
        held = rig.later(lambda: http.post("/v2/models/m/infer", headers=headers))
        rig.scale.wait_held(1)
        rig.scale.wait_for(lambda: rig.scale.calls > 2)  # two intervals have passed
        rig.model.start()
        assert held.result(PATIENCE_S).status_code == 200
        (left,) = rig.model.seen[0].values(b"x-request-timeout-ms")
        assert 1 <= int(left) < 60_000 - 2 * 40


@pytest.mark.parametrize("faulty", ["is_ready", "raise_from_zero"])
async def test_a_fault_of_the_wake_is_told_to_those_who_wait(faulty: str) -> None:
    async def fail() -> bool:
        raise TypeError("replicas is a text")

    async def no() -> bool:
        return False

    calls = {"is_ready": no, "raise_from_zero": no, faulty: fail}
    room = WaitingRoom(f"faulty-{faulty}", BRISK, **calls)
    for _ in range(2):  # the second wait begins another wake
        with pytest.raises(TypeError, match="replicas is a text"):
            await room.until_ready(time.monotonic() + PATIENCE_S, time.monotonic())


class Asked:
    """The two calls of a waiting room, counted, and a clock that the test sets."""

    def __init__(self) -> None:
        self.is_up = False
        self.looks = 0
        self.looked = asyncio.Event()
        self.now = 0.0

    async def is_ready(self) -> bool:
        return self.is_up

    async def raise_from_zero(self) -> bool:
        self.looks += 1
        self.looked.set()
        return False

    def room(self, name: str, **bounds: Any) -> WaitingRoom:
        settings = replace(BRISK, **bounds)
        return WaitingRoom(name, settings, self.is_ready, self.raise_from_zero, lambda: self.now)


def waits(room: WaitingRoom) -> asyncio.Task[None]:
    return asyncio.create_task(room.until_ready(PATIENCE_S, 0.0))


async def leave(waiting: asyncio.Task[None]) -> None:
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_callers_who_come_and_leave_do_not_have_the_scale_api_asked_more_often() -> None:
    asked = Asked()
    room = asked.room("comes-and-leaves", scale_s=60.0)
    first = waits(room)
    await asked.looked.wait()
    await leave(first)
    for _ in range(50):
        each = waits(room)
        for _ in range(5):  # its wake has begun
            await asyncio.sleep(0)
        await leave(each)
    assert asked.looks == 1
    asked.looked.clear()
    asked.now = 61.0
    again = waits(room)
    await asked.looked.wait()
    await leave(again)


async def test_a_request_that_comes_once_the_model_is_ready_does_not_wait_behind_the_others() -> (
    None
):
    asked = Asked()
    room = asked.room("just-ready")
    states: list[bool] = []

    async def wait() -> None:
        await room.until_ready(PATIENCE_S, 0.0)
        states.append(room.is_waking)

    both = [asyncio.create_task(wait()) for _ in range(2)]
    await asked.looked.wait()
    asked.is_up = True
    await asyncio.gather(*both)
    assert states == [False, False]


async def test_a_connection_that_failed_once_is_no_start_whose_time_is_remembered() -> None:
    asked = Asked()
    room = asked.room("failed-once")
    guess = room.retry_after_s()
    asked.is_up = True
    await waits(room)
    assert room.retry_after_s() == guess


async def test_the_time_of_a_request_counts_from_when_it_came() -> None:
    """Its first attempt to connect took a second, which is part of its two."""
    room = Asked().room("came-before")
    with pytest.raises(WakeTimeout, match="did not start within 2 s of this request"):
        await room.until_ready(0.0, -2.0)
