"""The operator's port over both rooms: the view under load, and a profile of live traffic that
changes no answer."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest

from predictors.__main__ import build
from predictors.compute.profiling.profiler import Profiler
from predictors.operators.admin import admin_routes
from predictors.settings import ServerSettings
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, echo, held, serving, small_settings
from tests.product.brake import braked
from tests.product.conftest import CHECKPOINTS, product_settings

SECRET = "a large yellow crescent"
STEPS = 6
REPORT_S = 150.0  # a report is made by a nice process, which gets little of a busy machine

# names are labels of series: the server beside this one in the process has others
FLUX, QWEN_VL = "watched-flux", "watched-qwen-vl"


def admin_of(running: Running) -> httpx.Client:
    url = f"http://127.0.0.1:{running.server.admin_port}"
    return httpx.Client(base_url=url, timeout=REPORT_S)


class Profilers:
    """Makes profilers and says so: the steps of later requests are recorded."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._change = threading.Condition()
        self.made = 0

    def __call__(self) -> Any:
        with self._change:
            self.made += 1
            self._change.notify_all()
        return self._make()

    def wait_made(self, number: int) -> None:
        """Return once there were so many."""
        with self._change:
            assert self._change.wait_for(lambda: self.made >= number, PATIENCE_S)


@pytest.fixture(scope="module")
def profilers() -> Profilers:
    return Profilers(Profiler)


@pytest.fixture(scope="module")
def watched(profilers: Profilers) -> Iterator[Running]:
    """Both rooms with an admin port."""
    base = product_settings()
    settings = replace(base, server=replace(base.server, admin_port=0))
    models = [
        build(FLUX, CHECKPOINTS / "shapes-flux", settings),
        build(QWEN_VL, CHECKPOINTS / "shapes-qwen-vl", settings),
    ]
    more: Any = {
        "settings": settings,
        "admin_routes": partial(admin_routes, make_profiler=profilers),
    }
    with serving(*models, **more) as running:  # type: ignore[arg-type]
        yield running


def draw(running: Running, steps: int) -> list[str]:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [SECRET]}
    body = {"inputs": [prompt], "parameters": {"seed": 7, "num_inference_steps": steps}}
    with running.client() as http:
        reply = http.post(f"/v2/models/{FLUX}/infer", json=body)
    assert reply.status_code == 200, reply.text
    return next(o["data"] for o in reply.json()["outputs"] if o["name"] == "image")


def chat(running: Running, tokens: int) -> str:
    body = {
        "model": QWEN_VL,
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    with running.client() as http:
        reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def names_in(trace: bytes) -> list[str]:
    """The names of all events of a gzipped Chrome trace."""
    events = json.loads(gzip.decompress(trace))["traceEvents"]
    return [e["name"] for e in events if e.get("cat") == "user_annotation"]


def test_the_view_shows_what_runs_and_never_what_was_asked(watched: Running) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        admin_of(watched) as admin,
        braked(watched, FLUX, free_steps=2) as brake,
    ):
        drawing = pool.submit(draw, watched, 100)
        brake.wait_held()
        reply = admin.get("/debug/engine")
        brake.release()
        drawing.result()
    assert reply.status_code == 200
    assert "yellow" not in reply.text
    seconds = reply.json()["threads"]
    assert {"MainThread", f"{FLUX}-engine", f"{QWEN_VL}-engine"} <= set(seconds)
    assert seconds[f"{FLUX}-engine"] > 0
    models = reply.json()["models"]
    flux, qwen = models[FLUX], models[QWEN_VL]
    job = flux["running"][0]
    assert (job["steps_done"], job["steps_left"]) == (2, 98)
    assert (job["shape"], job["tier"]) == ("128x128", "lossless")
    assert 0 <= job["slot_s"] <= job["age_s"]
    assert (flux["state"], flux["queued"], flux["slots"]) == ("ready", 0, 4)
    assert flux["caches"]["prompt_embedding"]["entries"] == 1
    assert flux["caches"]["prompt_embedding"]["bytes"] > 0
    assert flux["warm_shapes"] == ["128x128"]
    assert flux["precision"]["lossless"] == "float32"
    assert flux["recompilations_after_ready"] == flux["captures_after_ready"] == 0
    assert flux["start"] == "plain"
    assert qwen["running"] == []
    assert qwen["kv_pages"]["free"] == qwen["kv_pages"]["all"]
    assert "vision" in qwen["warm_shapes"]


def test_a_profile_of_live_drawing_has_its_steps_and_stages_and_changes_no_byte(
    watched: Running, profilers: Profilers
) -> None:
    alone = draw(watched, 60)
    with ThreadPoolExecutor(1) as pool, admin_of(watched) as admin:
        wish, made = {"model": FLUX, "steps": STEPS}, profilers.made
        asked = pool.submit(admin.post, "/debug/profile", json=wish)
        profilers.wait_made(made + 1)
        assert draw(watched, 60) == alone
        reply = asked.result()
        found = reply.json()
        assert reply.status_code == 200, found
        trace = admin.get(found["trace"])
        assert admin.get("/debug/profile/another").status_code == 404
    assert found["steps"] == STEPS
    assert {"engine_step", "denoise_step"} <= {row["name"] for row in found["stages"]}
    calls = {row["name"]: row["calls"] for row in found["stages"]}
    assert calls["engine_step"] == STEPS
    assert any(row["name"].startswith("aten::") for row in found["top"])
    assert trace.headers["content-type"] == "application/gzip"
    assert len(trace.content) == found["trace_bytes"]
    assert names_in(trace.content).count("engine_step") == STEPS


def test_a_profile_of_a_whole_picture_names_all_its_stages(
    watched: Running, profilers: Profilers
) -> None:
    with ThreadPoolExecutor(1) as pool, admin_of(watched) as admin:
        wish, made = {"model": FLUX, "steps": 5}, profilers.made
        asked = pool.submit(admin.post, "/debug/profile", json=wish)
        profilers.wait_made(made + 1)
        files = [draw(watched, 4) for _ in range(2)]
        assert files[0] == files[1]
        stages = {row["name"] for row in asked.result().json()["stages"]}
    assert {"denoise_step", "vae_decode"} <= stages


def test_a_profile_of_chat_comes_as_a_file_when_asked_for_one(watched: Running) -> None:
    alone = chat(watched, 40)
    with ThreadPoolExecutor(1) as pool, admin_of(watched) as admin:
        wish = {"model": QWEN_VL, "steps": 20}
        accept = {"accept": "application/gzip"}
        asked = pool.submit(admin.post, "/debug/profile", json=wish, headers=accept)
        while not asked.done():
            assert chat(watched, 40) == alone
        reply = asked.result()
    assert reply.headers["content-type"] == "application/gzip"
    assert {"engine_step", "decode"} <= set(names_in(reply.content))
    assert names_in(reply.content).count("engine_step") == 20


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ({"model": 1}, 400),
        ({"model": FLUX, "steps": 0}, 400),
        ({"model": FLUX, "steps": True}, 400),
        ({"model": FLUX, "steps": 10_000}, 400),
        ({"model": FLUX, "timeout_s": "1"}, 400),
        ({"model": FLUX, "timeout_s": 1e9}, 400),
        ({"model": FLUX, "step": 1}, 400),
        ({"model": "nobody"}, 404),
    ],
)
def test_a_bad_profile_request_is_refused(watched: Running, body: Any, status: int) -> None:
    with admin_of(watched) as admin:
        reply = admin.post("/debug/profile", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]


def test_a_profile_request_without_its_media_type_is_refused_so_that_no_web_page_can_ask(
    watched: Running,
) -> None:
    with admin_of(watched) as admin:
        assert admin.post("/debug/profile", content=b'{"model":"watched-flux"}').status_code == 415
        assert admin.post("/debug/profile", json={"model": "x" * 5000}).status_code == 413


def test_without_traffic_the_wait_ends_and_the_next_may_ask(watched: Running) -> None:
    with admin_of(watched) as admin:
        for _ in range(2):
            reply = admin.post("/debug/profile", json={"model": FLUX, "timeout_s": 0.1})
            assert reply.status_code == 504
            assert f"nobody asked {FLUX!r}" in reply.json()["error"]


class Counting:
    """A profiler that only counts, for an engine without torch."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.table = {"calls": self.calls}
        self.trace = b""

    def start(self) -> None:
        self.calls.append("start")

    def before_step(self) -> None:
        self.calls.append("before")

    def after_step(self) -> None:
        self.calls.append("after")

    def stop(self) -> None:
        self.calls.append("stop")

    def report(self) -> Counting:
        return self


class Broken(Counting):
    def start(self) -> None:
        raise OSError("/secret")


def test_the_port_is_off_by_default() -> None:
    assert ServerSettings().admin_port == -1
    assert ServerSettings().admin_host == "127.0.0.1"
    with serving(echo()) as running, running.client() as http:
        assert running.server.admin_port == -1
        assert http.get("/debug/engine").status_code == 404
        assert http.post("/debug/profile", json={"model": "echo"}).status_code == 404


@contextmanager
def profiled(make_profiler: Callable[[], Any]) -> Iterator[tuple[Running, Asking, httpx.Client]]:
    """A model that echoes, who asks it, and a client of its admin port with these profilers."""
    settings = small_settings(server={"admin_port": 0})
    more: Any = {
        "settings": settings,
        "admin_routes": partial(admin_routes, make_profiler=make_profiler),
    }
    with (
        serving(echo(settings=settings), **more) as running,
        Asking(running) as asking,
        admin_of(running) as admin,
    ):
        yield running, asking, admin


def ask_until(asking: Asking, holds: Callable[[], bool]) -> None:
    """Traffic, so that the engine steps; each is answered."""
    while not holds():
        assert asking.post("x").result(PATIENCE_S).status_code == 200


def test_one_profile_at_a_time_and_a_drain_ends_the_wait() -> None:
    profilers = Profilers(Counting)
    wish = {"model": "echo", "steps": 3}
    with profiled(profilers) as (running, asking, admin):
        port = running.server.admin_port
        first = asking.call(lambda: admin.post("/debug/profile", json=wish))
        profilers.wait_made(1)
        with admin_of(running) as other:
            assert other.post("/debug/profile", json=wish).status_code == 503
            assert not first.done()
        for i in range(3):
            assert asking.post(f"{i}").result(PATIENCE_S).status_code == 200
        found = first.result(PATIENCE_S).json()
        assert found["calls"] == ["start", *["before", "after"] * 3, "stop"]
        waiting = asking.call(lambda: admin.post("/debug/profile", json=wish))
        profilers.wait_made(2)
        assert running.stop() == 0
        assert waiting.result(PATIENCE_S).status_code == 503
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def test_the_next_profile_waits_until_the_report_of_the_last_is_made() -> None:
    making, may_end = threading.Event(), threading.Event()

    class Slow(Counting):
        def report(self) -> Counting:
            making.set()
            assert may_end.wait(PATIENCE_S)
            return self

    wish = {"model": "echo", "steps": 1, "timeout_s": PATIENCE_S}
    with profiled(Slow) as (running, asking, admin), admin_of(running) as other:
        first = asking.call(lambda: admin.post("/debug/profile", json=wish))
        ask_until(asking, making.is_set)
        assert other.post("/debug/profile", json=wish).status_code == 503
        assert not first.done()
        may_end.set()
        found = first.result(PATIENCE_S).json()
        assert other.get(found["trace"]).status_code == 200
        reply = other.post("/debug/profile", json=wish | {"timeout_s": 0.1})
        assert reply.status_code == 504, "it may ask, and nobody steps"


def test_a_profiler_that_fails_harms_no_request_and_leaks_nothing() -> None:
    wish = {"model": "echo", "steps": 1, "timeout_s": PATIENCE_S}
    with profiled(Broken) as (_, asking, admin):
        asked = asking.call(lambda: admin.post("/debug/profile", json=wish))
        ask_until(asking, asked.done)
        assert asked.result().status_code == 500
        assert "secret" not in asked.result().text


def test_a_server_without_a_profiler_says_so() -> None:
    settings = small_settings(server={"admin_port": 0})
    serving_it = held(ScriptedEngine(), settings, admin_routes=admin_routes)
    with serving_it as (running, _), admin_of(running) as admin:
        assert admin.post("/debug/profile", json={"model": "echo"}).status_code == 501
        assert admin.get("/debug/engine").json()["models"]["echo"]["state"] == "ready"
