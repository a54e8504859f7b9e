"""Checks that hold for every response to an invalid request, in any protocol."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.fakes import ScriptedEngine
from tests.http.echo import Running

LEAKS = re.compile(
    r"\b0x[0-9a-f]{4,}|/work|/usr|/tmp|/home|/mnt|\.py\b|site-packages|Traceback|object at|<_io|PIL"
    r"|\b[A-Z][A-Za-z]*(Error|Exception|Warning)\b|NoneType|\bdict\b|\bself\b"
)


def check_text(text: str, words: str) -> None:
    """Check that the message has these words and no internals."""
    assert words in text, text
    assert not LEAKS.search(text), text
    assert len(text) < 600


def tensor(name: str = "prompt", datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    """A JSON input; `drop=("shape",)` leaves fields out."""
    drop = more.pop("drop", ())
    found = {"name": name, "datatype": datatype, "shape": [1], "data": ["a"]} | more
    return {key: value for key, value in found.items() if key not in drop}


@contextmanager
def timed(record_property: Any) -> Iterator[None]:
    """Record the response time (`--junitxml`). No test depends on it."""
    began = time.perf_counter()
    yield
    record_property("seconds", round(time.perf_counter() - began, 4))


def check_full_queue_of_streams(
    running: Running, engine: ScriptedEngine, path: str, body: Any
) -> None:
    """Check that a stream which finds no place keeps its status. The queue has one place, the
    engine one slot."""
    with ExitStack() as stack:
        stack.callback(engine.open)
        for _ in range(2):
            http = stack.enter_context(running.client())
            reply = stack.enter_context(http.stream("POST", path, json=body))
            assert reply.status_code == 200
            engine.wait_in_step()  # the first one holds the slot; the second one fills the queue
        refused = stack.enter_context(running.client()).post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_overloaded")
        assert int(refused.headers["retry-after"]) >= 1
