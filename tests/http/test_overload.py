"""Overload on the wire: each monitor by its real cause, what is refused and what never is."""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

from predictors import metrics
from predictors.observe import memory_use
from predictors.observe.memory_use import MemoryUse
from predictors.protocol import memory_at_rest
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.overload import CLOSE, REFUSE, Monitor
from tests.fakes import ScriptedEngine
from tests.http.echo import (
    CALM,
    PATIENCE_S,
    Asking,
    Running,
    echo,
    held,
    infer_body,
    serving,
    small_settings,
)
from tests.http.log_lines import logged

OPEN = ("/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready", "/v2")
MESSAGE = "the server is overloaded ({}); try again later"


@contextmanager
def server(
    overload: dict[str, Any] | None = None,
    on_ready: Callable[[], object] = lambda: None,
    **own: Any,
) -> Iterator[Running]:
    settings = replace(small_settings(server=own), overload=replace(CALM, **overload or {}))
    with serving(echo("echo", settings), settings=settings, on_ready=on_ready) as running:
        yield running


class Watch:
    """Waits for states of the gate, at its own readings."""

    def __init__(self, running: Running) -> None:
        self.gate = running.server.registry.overload
        self._changed = threading.Condition()
        self.reads = threading.Event()
        """Cleared, the gate stays as it is."""
        self.reads.set()
        update = self.gate.update

        def updating() -> None:
            if not self.reads.is_set():
                return
            update()
            with self._changed:
                self._changed.notify_all()

        self.lag = running.server.registry.loop_overdue_s.__self__  # type: ignore[attr-defined]
        self.lag._on_tick = updating

    def wait(self, state: str, *, is_on: bool = True) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: getattr(self.gate, state) is is_on, PATIENCE_S)


def post(running: Running, body: Any = None, **more: Any) -> httpx.Response:
    with running.client() as http:
        return http.post("/v2/models/echo/infer", json=body or infer_body(), **more)


def check_open(running: Running) -> None:
    """Probes, scrapes and metadata are answered."""
    with running.client() as http:
        assert {path: http.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)


def counted(reason: str) -> float:
    found = metrics.requests_total.labels("echo", "v2_rest", "infer", reason)._value.get()
    return float(found)


def press(running: Running, *actions: str) -> None:
    """Turn actions on by a monitor of the test's own."""
    watch = Watch(running)
    watch.gate.watch(Monitor("memory", lambda: 1.0, set(actions)))
    watch.wait("is_refusing" if REFUSE in actions else "closes")


# -- what the actions do ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def refusing() -> Iterator[Running]:
    """A server that refuses all new requests."""
    with server() as running:
        press(running, CLOSE, REFUSE)
        yield running


def test_a_refusal_has_the_v2_error_and_is_counted(refusing: Running) -> None:
    before = counted("overloaded")
    answer = post(refusing)
    assert answer.status_code == 503
    assert answer.json() == {"error": MESSAGE.format("memory")}
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"
    check_open(refusing)  # a request is counted after its answer is sent, and before the next one
    assert counted("overloaded") == before + 1


def test_a_refusal_has_the_openai_error(refusing: Running) -> None:
    with refusing.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": "echo", "messages": []})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "server_overloaded"


def test_a_refusal_over_grpc_says_when_to_come_back(refusing: Running) -> None:
    with grpc.insecure_channel(refusing.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(pb.ModelInferRequest(model_name="echo"), timeout=PATIENCE_S)
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.value.details() == MESSAGE.format("memory")
        assert dict(failure.value.trailing_metadata())["retry-after"]
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE_S).ready


def test_probes_scrapes_and_metadata_are_never_refused(refusing: Running) -> None:
    check_open(refusing)


def test_a_refusal_comes_before_the_body(refusing: Running) -> None:
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
    address = ("127.0.0.1", refusing.server.http_port)
    with socket.create_connection(address, PATIENCE_S) as raw:
        raw.sendall(head + b"content-type: application/json\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 503"
    with socket.create_connection(address, PATIENCE_S) as raw:
        raw.sendall(head + b"expect: 100-continue\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 503"


def test_accepted_requests_are_answered_while_new_ones_are_refused() -> None:
    engine = ScriptedEngine()
    with held(engine) as (running, _), Asking(running) as asking:
        accepted = asking.post("accepted")
        engine.wait_in_step()
        press(running, CLOSE, REFUSE)
        assert post(running).status_code == 503
        engine.open()
        answer = accepted.result(PATIENCE_S)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_without_pressure_connections_are_kept() -> None:
    with server() as running, running.client() as http:
        for _ in range(2):
            answer = http.post("/v2/models/echo/infer", json=infer_body())
            assert (answer.status_code, answer.headers.get("connection")) == (200, None)


# -- each monitor, by its real cause ---------------------------------------------------------------
def test_open_connections_close_others_with_their_answers_and_refuse_none() -> None:
    with server(max_connections=20) as running, ExitStack() as idle:
        watch = Watch(running)
        for _ in range(20):
            address = ("127.0.0.1", running.server.http_port)
            idle.enter_context(socket.create_connection(address, PATIENCE_S))
        watch.wait("closes")
        answer = post(running)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        idle.close()
        watch.wait("closes", is_on=False)
        assert "connection" not in post(running).headers


def test_busy_connections_refuse_new_requests() -> None:
    engine = ScriptedEngine()
    overload = {"close_at": 0.4, "refuse_at": 0.5}
    settings = small_settings(server={"max_connections": 8})
    settings = replace(settings, overload=replace(CALM, **overload))
    with held(engine, settings) as (running, model), Asking(running) as asking:
        watch = Watch(running)
        watch.reads.clear()  # the last of them would be refused if the gate read it as it comes
        answers = [asking.post(f"{i}") for i in range(4)]
        model.wait_submitted(4)
        watch.reads.set()
        watch.wait("is_refusing")
        assert post(running).json() == {"error": MESSAGE.format("busy_connections")}
        check_open(running)
        engine.open()
        assert [answer.result(PATIENCE_S).status_code for answer in answers] == [200] * 4
        watch.wait("is_refusing", is_on=False)
        assert post(running).status_code == 200


def test_one_caller_holds_half_of_the_connections_with_slow_bodies_and_others_are_served() -> None:
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n"
    head += b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    with server(max_connections=16) as running, ExitStack() as slow:
        address = ("127.0.0.1", running.server.http_port)
        raws = [slow.enter_context(socket.create_connection(address, PATIENCE_S)) for _ in range(9)]
        for raw in raws:
            raw.sendall(head)
        refused = select.select(raws, [], [], PATIENCE_S)[0]  # one too many, whichever came last
        assert [raw.recv(12) for raw in refused] == [b"HTTP/1.1 429"]
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other, base_url=running.url, timeout=PATIENCE_S) as http:
            assert http.post("/v2/models/echo/infer", json=infer_body()).status_code == 200
        slow.close()


def test_bodies_in_flight_refuse_large_requests_and_small_ones_pass() -> None:
    with server(max_bytes_in_flight=200_000) as running:
        watch = Watch(running)
        large = json.dumps(infer_body("x" * 262_000)).encode()
        head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n"
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
        head %= len(large) + 1  # the last byte does not come
        address = ("127.0.0.1", running.server.http_port)
        with socket.create_connection(address, PATIENCE_S) as slow:
            slow.sendall(head + large)
            watch.wait("is_refusing")
            refused = post(running, infer_body("y" * 70_000))
            assert refused.status_code == 503
            assert refused.json() == {"error": MESSAGE.format("bodies")}
            assert post(running).status_code == 200
            check_open(running)
        watch.wait("is_refusing", is_on=False)
        assert post(running, infer_body("y" * 70_000)).status_code == 200


def test_a_loop_that_stays_late_refuses_and_recovers() -> None:
    with server({"loop_lag_s": 0.02}, health_port=0) as running:
        watch, loop, go_on = Watch(running), running.server._loop, threading.Event()
        assert loop is not None

        def block() -> None:
            if not go_on.wait(0.25):  # the loop is late by this much, again and again
                loop.call_soon(block)

        loop.call_soon_threadsafe(block)
        watch.wait("is_refusing")
        health = f"http://127.0.0.1:{running.server.health_port}/v2/health/ready"
        assert httpx.get(health, timeout=PATIENCE_S).status_code == 200
        assert post(running).json() == {"error": MESSAGE.format("loop_lag")}
        go_on.set()
        watch.lag._clock = lambda: watch.lag._due  # on time, however busy the machine is
        watch.wait("is_refusing", is_on=False)
        assert post(running).status_code == 200


def test_a_backlog_of_preparation_refuses() -> None:
    settings = replace(
        small_settings(server={"prepare_threads": 1}), overload=replace(CALM, prepare_backlog=4)
    )
    model = echo("echo", settings)
    with serving(model, settings=settings) as running:
        watch, go_on = Watch(running), threading.Event()
        for _ in range(6):
            model._pools.submit(go_on.wait, PATIENCE_S)
        try:
            watch.wait("is_refusing")
            assert post(running).json() == {"error": MESSAGE.format("backlog")}
            check_open(running)
        finally:
            go_on.set()
        watch.wait("is_refusing", is_on=False)
        assert post(running).status_code == 200


def test_memory_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    own = memory_use._process_use  # a container's has that of other processes
    monkeypatch.setattr(memory_at_rest, "find_memory_use", lambda limit: MemoryUse(own, limit))
    with server({"memory_bytes": own() * 5 // 4}) as running:
        check_open(running)
        watch = Watch(running)
        more = [b"x" * (own() // 4)]
        watch.wait("is_refusing")
        assert post(running).json() == {"error": MESSAGE.format("memory")}
        check_open(running)
        more.clear()
        watch.wait("is_refusing", is_on=False)
        assert post(running).status_code == 200


def test_a_limit_that_the_idle_server_fills_is_not_ready_and_says_both_numbers() -> None:
    with logged() as lines, server({"memory_bytes": 2**20}) as running:
        Watch(running).wait("is_refusing")
        words = "at rest, and refuses requests from 0.97 of its limit of 1 MiB"
        with running.client() as http:
            for path in ("/v2/health/ready", "/v2/models/echo/ready"):
                answer = http.get(path)
                assert (answer.status_code, answer.json()["ready"]) == (503, False)
                assert words in answer.json()["reason"]
            assert http.get("/health").status_code == 503
            assert http.get("/v2/health/live").status_code == 200
            refused = http.post("/v2/models/echo/infer", json=infer_body())
            assert refused.status_code == 503
            assert words in refused.json()["error"]
            (state,) = http.post("/v2/repository/index").json()
            assert (state["state"], words in state["reason"]) == ("UNAVAILABLE", True)
        assert lines.text.count("not ready: the server uses") == 1


def test_a_server_is_reported_ready_once_it_is_also_where_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, was_read, reported = [990], threading.Semaphore(0), threading.Event()

    def read() -> float:
        was_read.release()
        return float(used[0] * memory_at_rest.MIB)

    use = MemoryUse(read, 1000 * memory_at_rest.MIB)
    monkeypatch.setattr(memory_at_rest, "find_memory_use", lambda limit: use)

    def report() -> None:
        logging.getLogger("predictors").info("reported")
        reported.set()

    with logged() as lines, server(on_ready=report):
        for _ in range(5):
            assert was_read.acquire(timeout=PATIENCE_S)
        used[0] = 100
        assert reported.wait(PATIENCE_S)
        found = [lines.text.index(each) for each in ("not ready: ", "ready: the ", "reported")]
        assert found == sorted(found)
        assert lines.text.count("reported") == 1


def test_a_loop_that_has_not_run_for_long_is_not_ready_and_then_not_alive() -> None:
    with server(health_port=0) as running:
        registry, stall_s = running.server.registry, running.server.settings.queue.stall_timeout_s
        port = running.server.health_port
        found = {}
        for overdue_s in (0.0, 14.0, 16.0, stall_s - 1, stall_s + 1):
            registry.loop_overdue_s = lambda overdue_s=overdue_s: overdue_s  # type: ignore[misc]
            found[overdue_s] = tuple(
                httpx.get(f"http://127.0.0.1:{port}/v2/health/{which}").status_code
                for which in ("live", "ready")
            )
        assert list(found.values()) == [(200, 200), (200, 200), (200, 503), (200, 503), (503, 503)]
