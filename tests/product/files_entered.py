"""Serves both embedded models and prints, as JSON, the files of the package that one picture and
one chat about a picture enter, each in the order of its first call.

A program of its own: the trace function must be set before any thread starts.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "predictors") + "/"
TIMER = PACKAGE + "protocol/monitors.py"
"""Calls the overload gate ten times a second, beside the requests."""


class FilesEntered:
    """A trace function: while `is_on`, keeps the package's files in which a function is called."""

    def __init__(self) -> None:
        self.is_on = False
        self.ignored_thread = ""
        self.files: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.is_on or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if threading.current_thread().name != self.ignored_thread:
            file = frame.f_code.co_filename.removeprefix(PACKAGE)
            if file not in self.files and not is_of_timer(frame):
                self.files[file] = None

    def of(self, run: Any, ignored_thread: str = "") -> list[str]:
        """The files entered while `run()` runs, except by one thread."""
        self.files, self.ignored_thread, self.is_on = {}, ignored_thread, True
        try:
            run()
        finally:
            self.is_on = False
        return list(self.files)


def is_of_timer(frame: FrameType | None) -> bool:
    """True for a call of the timer, or below one."""
    while frame is not None:
        if frame.f_code.co_filename == TIMER:
            return True
        frame = frame.f_back
    return False


def main() -> None:
    entered = FilesEntered()
    threading.settrace(entered)
    sys.settrace(entered)
    from tests.product.conftest import served_models  # after the trace is set

    with served_models() as running, running.client() as http:
        picture: dict[str, Any] = {}

        def wait_removed(model: str) -> None:
            """Wait until the engine thread has counted the job: it is answered before that."""
            jobs = running.server.registry.find(model).host.jobs  # type: ignore[attr-defined]
            with jobs.removed:
                jobs.removed.wait_for(lambda: jobs.open_jobs == 0)

        def draw() -> None:
            prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}
            body = {"inputs": [prompt], "parameters": {"num_inference_steps": 4}}
            reply = http.post("/v2/models/flux/infer", json=body)
            assert reply.status_code == 200, reply.text
            wait_removed("flux")
            picture.update(reply.json())

        def chat() -> None:
            (data,) = picture["outputs"][0]["data"]
            url = {"url": f"data:image/png;base64,{data}"}
            parts = [{"type": "text", "text": "Describe."}, {"type": "image_url", "image_url": url}]
            messages = [{"role": "user", "content": parts}]
            body = {"model": "qwen-vl", "messages": messages, "max_tokens": 8, "stream": True}
            reply = http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            wait_removed("qwen-vl")

        found = {"picture": entered.of(draw)}
        # the picture is answered before the last round of its engine thread ends
        found["chat"] = entered.of(chat, ignored_thread="flux-engine")
    sys.settrace(None)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
