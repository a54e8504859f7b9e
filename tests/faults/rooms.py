"""Both embedded models behind one server, eight slots each, and faults that reach one request: the
one whose text says `breaks`."""

from __future__ import annotations

import base64
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from predictors.settings import ComputeSettings, FluxSettings, QwenVLSettings, Settings
from tests.http.echo import PATIENCE_S, Running, png, small_settings
from tests.product.brake import braked, wait_answered
from tests.product.conftest import served_models

IS_THOROUGH = bool(os.environ.get("ALL_FAULTS"))
"""`make faults` runs every combination, `make test` each kind once."""
ROWS = 8
CULPRIT = 5  # of the eight
BREAKS = "breaks"
STEPS = 6  # of a picture: so many can be in one pass
TOKENS = 6  # of an answer
Reply = tuple[int, str]
"""Status, and the answer or the message of the error."""


@contextmanager
def serving_both() -> Iterator[Running]:
    base = small_settings()
    settings = Settings(
        server=base.server,
        queue=base.queue,
        overload=base.overload,
        compute=ComputeSettings(device="cpu"),
        flux=FluxSettings(
            sizes="64x64", default_size="64x64", max_sequence_length=16, default_steps=STEPS,
            tiers="lossless", slots=ROWS,
        ),
        qwen_vl=QwenVLSettings(slots=ROWS, max_context=128, prefill_chunk=64),
    )  # fmt: skip
    with served_models(settings) as running:
        yield running


class Room(ABC):
    """One of the models. Remembers what was made for the request that breaks."""

    model: str

    def __init__(self, running: Running) -> None:
        self.running = running
        self.predictor: Any = running.server.registry.models[self.model]
        self.host = self.predictor.host
        self.engine = self.host._engine
        self.broken_works: list[Any] = []

    @abstractmethod
    def ask(self, row: int, *, breaks: bool = False) -> Reply:
        """Ask for the row's own picture or answer."""

    @abstractmethod
    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Remember the works of requests that break."""

    def ask_all(self, *, accepted: int = ROWS) -> list[Reply]:
        """All rows at once, the culprit among them, with so many in the engine's first step."""
        with (
            pytest.MonkeyPatch.context() as patch,
            ThreadPoolExecutor(ROWS) as pool,
            braked(self.running, self.model) as brake,
        ):
            is_in = count_accepted(patch, self.host)
            asked = [pool.submit(self.ask, i, breaks=i == CULPRIT) for i in range(ROWS)]
            for _ in range(accepted):
                assert is_in.acquire(timeout=PATIENCE_S)
            if accepted < ROWS:
                asked[CULPRIT].result(PATIENCE_S)
            brake.release()
            return [each.result(PATIENCE_S) for each in asked]

    def wait_answered(self) -> None:
        wait_answered(self.running)


class Pictures(Room):
    """FLUX over V2."""

    model = "flux"

    def ask(self, row: int, *, breaks: bool = False) -> Reply:
        prompt = f"a large red circle {row}" + (f" {BREAKS}" if breaks else "")
        tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}
        body = {"inputs": [tensor], "parameters": {"seed": row}}
        with self.running.client() as http:
            reply = http.post("/v2/models/flux/infer", json=body)
        if reply.status_code != 200:
            return reply.status_code, reply.json()["error"]
        return 200, reply.json()["outputs"][0]["data"][0]

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        preparer, runner = self.predictor._preparer, self.engine.runner
        prepare, start = preparer.prepare, runner.start
        self.broken_states: list[Any] = []

        def watched_prepare(request: Any) -> Any:
            work = prepare(request)
            if BREAKS in request.prompt:
                self.broken_works.append(work)
            return work

        def watched_start(plan: Any, *args: Any) -> Any:
            state = start(plan, *args)
            if any(plan is work.plan for work in self.broken_works):
                self.broken_states.append(state)
            return state

        patch.setattr(preparer, "prepare", watched_prepare)
        patch.setattr(runner, "start", watched_start)

    def breaks(self, state: Any) -> bool:
        return any(state is broken for broken in self.broken_states)

    def broken_prompt(self, prompt: Any, *_: Any) -> bool:
        return any(prompt is each for work in self.broken_works for each in work.prompts)


class Answers(Room):
    """Qwen2.5-VL over OpenAI chat, each row with a picture of its own."""

    model = "qwen-vl"

    def ask(self, row: int, *, breaks: bool = False) -> Reply:
        picture = base64.b64encode(picture_of(row, breaks=breaks)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": f"What {BREAKS}?" if breaks else f"What is in {row}?"},
        ]
        body = {
            "model": "qwen-vl", "messages": [{"role": "user", "content": content}],
            "temperature": 2, "seed": row, "max_tokens": TOKENS, "ignore_eos": True,
        }  # fmt: skip
        with self.running.client() as http:
            reply = http.post("/v1/chat/completions", json=body)
        if reply.status_code != 200:
            return reply.status_code, reply.json()["error"]["message"]
        return 200, reply.json()["choices"][0]["message"]["content"]

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        preparer = self.predictor._preparer
        assemble = preparer.assemble

        def watched(request: Any, *prepared: Any) -> Any:
            work = assemble(request, *prepared)
            if BREAKS in self.predictor.prompt(request):
                self.broken_works.append(work)
            return work

        patch.setattr(preparer, "assemble", watched)

    def breaks(self, slots: Sequence[int]) -> bool:
        """True if one of these slots is of a request that breaks."""
        own = [s.slot for s in list(self.engine._sequences.values()) if self._is_broken(s.work)]
        return bool(set(own) & set(slots))

    def broken_picture(self, picture: Any, *_: Any) -> bool:
        placed = (each.prepared for work in self.broken_works for each in work.pictures)
        return any(picture.key == each.key for each in placed)

    def _is_broken(self, work: Any) -> bool:
        return any(work is broken for broken in self.broken_works)


def picture_of(row: int, *, breaks: bool = False) -> bytes:
    return png((25 * row, 90, 200 if breaks else 10), size=(56, 56))


def count_accepted(patch: pytest.MonkeyPatch, host: Any) -> threading.Semaphore:
    """A semaphore that is released for every job that `host` accepts from now on."""
    accepted, submit = threading.Semaphore(0), host.submit

    def submit_and_count(*args: Any, **more: Any) -> Any:
        jobs = submit(*args, **more)
        accepted.release(len(jobs))
        return jobs

    patch.setattr(host, "submit", submit_and_count)
    return accepted


def raising(call: Callable[..., Any], when: Callable[..., bool], error: Exception) -> Any:
    """`call`, which raises `error` first where `when` says so of its arguments."""

    def run(*args: Any, **more: Any) -> Any:
        if when(*args, **more):
            raise error
        return call(*args, **more)

    return run
