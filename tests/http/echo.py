"""A predictor without a model, and a server in a thread, for tests of the wire formats.

`EchoPredictor` returns each row's own prompt, picture and numbers, through the real base class,
host and routes. `serving` runs the real server on free ports.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import httpx
from PIL import Image

from predictors.base import Answer, BasePredictor, Submission
from predictors.errors import InvalidRequest
from predictors.metrics import ModelSeries
from predictors.protocol.call import Call
from predictors.protocol.images.decode import decode_pixels
from predictors.protocol.server import PredictorServer
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    Tensor,
    V2Request,
    V2Response,
    count_rows,
)
from predictors.serving.engine import Engine
from predictors.serving.host import EngineHost
from predictors.settings import (
    AccessSettings,
    ImageLimits,
    OverloadSettings,
    QueueSettings,
    ServerSettings,
    Settings,
)
from tests.fakes import EchoEngine, ScriptedEngine, Task

T = TypeVar("T")

PATIENCE_S = 180.0  # also the timeout of requests that a test holds
CALM = OverloadSettings(loop_lag_s=0.0)
"""Refuses nothing because a busy machine makes the event loop late."""
LIMITS = ImageLimits(max_bytes=200_000, max_pixels=1_000_000, max_side=4000, max_aspect=50.0)

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxMDAwMDAAAANHQEDasKb6QAA"
    "AABJRU5ErkJggg=="
)
"""A picture that is the same bytes with every version of Pillow."""


def png(color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (8, 8)) -> bytes:
    """A small picture whose bytes are not UTF-8."""
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Row:
    """One row of an echo request."""

    prompt: str
    image: bytes | None = None
    seed: int = 0
    scale: float = 1.0
    steps: int = 1


class EchoPredictor(BasePredictor[Row, Any, Any]):
    """Inputs `prompt`, `image`, `seed`; parameters `steps`, `scale`, `format`.

    Outputs `echo` (the prompt), `image` (the picture or `PIXEL`), `seed`, `scale` (FP64).
    """

    task = "flux"
    series = ModelSeries(operations=("infer", "images"))
    file_inputs = frozenset({"image"})

    def __init__(self, name: str, engine: Engine[Any, Any], settings: Settings) -> None:
        super().__init__(name, engine, settings)
        self.seen: list[V2Request] = []

    def decode_v2(self, request: V2Request) -> list[Row]:
        self.seen.append(request)
        inputs = InputTensors(request.inputs)
        prompts = inputs.read_text("prompt")
        images = inputs.read_files("image")
        seeds = inputs.read_ints("seed")
        inputs.reject_unread()
        parameters = Parameters(request.parameters, ignored=("timeout", "priority"))
        steps = parameters.read_int("steps")
        scale = parameters.read_float("scale")
        parameters.read_text("format")
        parameters.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is missing", param="prompt")
        count = count_rows(prompt=prompts, image=images, seed=seeds)
        for i, image in enumerate(images or []):
            try:
                decode_pixels(image, LIMITS).memory.close()
            except InvalidRequest as error:
                raise type(error)(error.message, param="image", row=i) from error
        return [
            Row(
                prompts[i],
                images[i] if images else None,
                seeds[i] if seeds else i,
                1.0 if scale is None else scale,
                1 if steps is None else steps,
            )
            for i in range(count)
        ]

    def prepare(self, request: Row) -> Any:
        return request

    def encode_v2(self, request: V2Request, answers: list[Answer[Row, Any]]) -> V2Response:
        rows = [answer.request for answer in answers]
        n = (len(rows),)
        image_type = {"content_type": "image/png"}
        outputs = (
            Tensor("echo", "BYTES", n, [row.prompt.encode() for row in rows]),
            Tensor("image", "BYTES", n, [row.image or PIXEL for row in rows], image_type),
            Tensor("seed", "INT64", n, [row.seed for row in rows]),
            Tensor("scale", "FP64", n, [row.scale for row in rows]),
        )
        return V2Response(self.name, "", outputs, {"rows": len(rows), "precision": "none"})

    def get_input_types(self) -> list[dict[str, Any]]:
        return [
            {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        kinds = {"echo": "BYTES", "image": "BYTES", "seed": "INT64", "scale": "FP64"}
        return [{"name": k, "datatype": v, "shape": [-1]} for k, v in kinds.items()]


class TaskPredictor(EchoPredictor):
    """An `EchoPredictor` on a `ScriptedEngine`: the prompt is the task's name.

    `submitted` is released once per accepted request, `left` is set when a request is cancelled.
    The host's clock is `clock`, the real one by default, plus what `let_pass` added.
    """

    def __init__(
        self,
        name: str,
        engine: Engine[Any, Any],
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, engine, settings)
        self._ahead_s = 0.0
        ahead = lambda: clock() + self._ahead_s  # noqa: E731
        self.host = EngineHost(name, engine, settings.queue, clock=ahead)
        self.submitted = threading.Semaphore(0)
        self.left = threading.Event()

    def prepare(self, request: Row) -> Any:
        return Task(request.prompt, steps=request.steps)

    async def submit(self, requests: Sequence[Row], call: Call) -> list[Submission[Any, Any]]:
        submissions = await super().submit(requests, call)
        self.submitted.release()
        return submissions

    async def run(self, requests: Sequence[Row], call: Call) -> list[Answer[Row, Any]]:
        try:
            return await super().run(requests, call)
        except asyncio.CancelledError:
            self.left.set()
            raise

    def let_pass(self, seconds: float) -> None:
        """Advance the host's clock."""
        self._ahead_s += seconds
        self.host.jobs.wake()

    def wait_submitted(self, times: int = 1) -> None:
        """Wait until `times` more requests were accepted."""
        for _ in range(times):
            assert self.submitted.acquire(timeout=PATIENCE_S), "no request was accepted"


def echo(name: str = "echo", settings: Settings | None = None) -> EchoPredictor:
    """An `EchoPredictor` whose engine is never held."""
    return EchoPredictor(name, EchoEngine(), settings or small_settings())


def small_settings(
    *, server: dict[str, Any] | None = None, queue: dict[str, Any] | None = None
) -> Settings:
    """Settings with free ports, bodies of at most 1 MiB, and no refusals by loop lag."""
    base = {
        "port": 0,
        "grpc_port": 0,
        "max_body_bytes": 2**20,
        "max_message_bytes": 2**20,
        "drain_timeout_s": PATIENCE_S,
    }
    return Settings(
        server=ServerSettings(**base | (server or {})),
        queue=QueueSettings(**(queue or {})),
        overload=CALM,
        access=AccessSettings(open=True),  # for tests that listen on other addresses
    )


@dataclass
class Running:
    """A server that runs in a thread."""

    server: PredictorServer
    thread: threading.Thread
    exit_codes: list[int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    def stop(self) -> int:
        """Drain the server. Returns the exit code."""
        self.server.stop()
        return self.join()

    def join(self) -> int:
        """Wait until the server has stopped. Returns the exit code."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the server did not end"
        return self.exit_codes[0]

    def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        loop = self.server._loop
        assert loop is not None
        idle = self.server.registry.wait_idle(PATIENCE_S)
        assert asyncio.run_coroutine_threadsafe(idle, loop).result(PATIENCE_S)

    def client(self) -> httpx.Client:
        """A client with one keep-alive connection."""
        limits = httpx.Limits(max_connections=1)
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, limits=limits)


@contextmanager
def serving(
    *models: EchoPredictor, settings: Settings | None = None, wait_ready: bool = True, **more: Any
) -> Iterator[Running]:
    """Run a server, and stop it unless the test did."""
    server = PredictorServer(models, settings or small_settings(), **more)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(server.run()), name="server")
    thread.start()
    running = Running(server, thread, codes)
    try:
        assert server.wait_started(PATIENCE_S), "the server did not start"
        if wait_ready:
            for model in models:
                model.host.wait_ready(PATIENCE_S)
        yield running
    finally:
        if thread.is_alive():
            running.stop()


def infer_body(*prompts: str, **more: Any) -> dict[str, Any]:
    """A V2 request with these prompts."""
    data = list(prompts) or ["a red circle"]
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [len(data)], "data": data}
    return {"inputs": [tensor], **more}


@contextmanager
def held(
    engine: ScriptedEngine,
    settings: Settings | None = None,
    *,
    wait_ready: bool = True,
    clock: Callable[[], float] = time.monotonic,
    **more: Any,
) -> Iterator[tuple[Running, TaskPredictor]]:
    """A server whose engine steps only when the test allows it; opened at the end."""
    settings = settings or small_settings()
    model = TaskPredictor("echo", engine, settings, clock)
    with serving(model, settings=settings, wait_ready=wait_ready, **more) as running:
        try:
            yield running, model
        finally:
            engine.open()


class Asking:
    """Sends requests in background threads."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._pool = ThreadPoolExecutor(16)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def post(self, prompt: str, *, steps: int = 1, **more: Any) -> Future[httpx.Response]:
        """Send an infer request on its own connection."""
        body = infer_body(prompt, parameters={"steps": steps} | more.pop("parameters", {}))
        return self._pool.submit(self._post, body, more)

    def _post(self, body: dict[str, Any], more: dict[str, Any]) -> httpx.Response:
        with self._running.client() as http:
            return http.post("/v2/models/echo/infer", json=body, **more)

    def call(self, ask: Callable[[], T]) -> Future[T]:
        """Run any function."""
        return self._pool.submit(ask)
