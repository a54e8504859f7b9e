"""A profile that is taken while callers are served: it opens, has what was asked for, and costs
them what is measured here."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.observe.clients import Clients, picture, words
from tests.observe.daemon import wait_until
from tests.observe.live import Live

PROFILED_STEPS = 20
UNDISTURBED_S = 4.0
PROFILE_S = 120.0  # a report is made by a process that lets everybody go first
ROOMS = {"flux": "denoise_step", "qwen-vl": "decode"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("profiled")
    calm = {"PREDICTORS_OVERLOAD_LOOP_LAG_S": "0"}  # a busy machine makes the event loop late
    with Live(folder / "server.log", calm) as server:
        server.wait_warm()
        yield server


@contextmanager
def asked_all_the_time(clients: Clients, model: str) -> Iterator[None]:
    """Two callers that keep the engine of `model` stepping."""
    ask: Callable[[], str] = {
        "flux": lambda: clients.rest("flux", picture(50)),
        "qwen-vl": lambda: clients.rest("qwen-vl", words(100)),
    }[model]
    ending = threading.Event()

    def keep_asking() -> None:
        while not ending.is_set():
            assert ask() == "ok"

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(keep_asking) for _ in range(2)]
        try:
            yield
        finally:
            ending.set()
    for task in tasks:
        task.result()


class Pace:
    """Engine steps of a model per second."""

    def __init__(self, live: Live, model: str) -> None:
        self._live, self._model = live, model
        self._steps, self._at_s = self._read(), time.monotonic()

    def per_second(self) -> float:
        return (self._read() - self._steps) / (time.monotonic() - self._at_s)

    def has_begun(self) -> bool:
        return self._read() > self._steps

    def _read(self) -> float:
        found = self._live.samples("predictors_engine_steps_total")
        return found[frozenset({("model", self._model)})]


def measured(live: Live, model: str) -> tuple[Any, bytes, dict[str, float]]:
    """A profile under load: the answer, the trace, and what it cost."""
    with Clients(live) as clients, asked_all_the_time(clients, model):
        live.wait_view(model, running=2)
        pace = Pace(live, model)
        threading.Event().wait(UNDISTURBED_S)
        wait_until(pace.has_begun, lambda: f"{model} takes no step")
        before = pace.per_second()
        pace, began_s = Pace(live, model), time.monotonic()
        wish = {"model": model, "steps": PROFILED_STEPS}
        reply = live.admin.post("/debug/profile", json=wish, timeout=PROFILE_S)
        took_s, during = time.monotonic() - began_s, pace.per_second()
    assert reply.status_code == 200, reply.text
    trace = live.admin.get(reply.json()["trace"]).content
    figures = {
        "steps_per_s": round(before, 1),
        "steps_per_s_meanwhile": round(during, 1),
        "loss": round(1 - during / before, 3),
        "seconds": round(took_s, 2),
    }
    return reply.json(), trace, figures


@pytest.mark.parametrize("model", ROOMS)
def test_a_profile_under_load_opens_and_its_cost_is_known(
    live: Live, model: str, record_property: Callable[[str, object], None]
) -> None:
    found, file, figures = measured(live, model)
    print(model, json.dumps(figures))  # noqa: T201 - a measurement, with `pytest -rP`
    record_property("profile", json.dumps(figures))
    events = json.loads(gzip.decompress(file))["traceEvents"]
    named = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert named["engine_step"] == found["steps"] == PROFILED_STEPS
    assert named[ROOMS[model]] >= PROFILED_STEPS // 2
    spans = [event for event in events if event.get("ph") == "X"]
    assert all(event["dur"] >= 0 and event["ts"] > 0 for event in spans)
    calls = {row["name"]: row["calls"] for row in found["stages"]}
    assert calls["engine_step"] == PROFILED_STEPS
    assert any(row["name"].startswith("aten::") for row in found["top"])
    with Clients(live) as clients:  # and then all is as before
        assert clients.rest("flux", picture()) == clients.rest("qwen-vl", words()) == "ok"
