"""Two scripted models behind the OpenAI routes, and a client of one ASGI request.

`Chatter` and `Painter` have what the OpenAI routes need of a model and nothing else: no engine,
no thread. They record what reached them, so that a test sees the checked body and the call.
`Wire` is the client's side of ASGI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from predictors import metrics
from predictors.protocol.call import Call
from predictors.protocol.http.app import RestApp
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.events import event
from predictors.protocol.openai.image_events import ImageEvents
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.routes import openai_routes
from predictors.protocol.registry import Registry
from predictors.settings import Settings

GOLDEN = Path(__file__).parents[2] / "golden" / "openai"
HELLO = {"model": "qwen-vl", "messages": [{"role": "user", "content": "hello"}]}
CIRCLE = {"model": "flux", "prompt": "a red circle"}
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
EDITS = "/v1/images/edits"
PATIENCE_S = 180.0  # never reached when all is well


class Model:
    """The common part of the doubles."""

    file_inputs = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_ready = True
        self.bodies: list[ChatBody | ImagesBody] = []
        self.calls: list[Call] = []
        self.error: BaseException | None = None  # raised before anything is answered

    async def healthy(self) -> bool:
        return self.is_ready

    def get_input_types(self) -> list[dict[str, Any]]:
        return []

    def get_output_types(self) -> list[dict[str, Any]]:
        return []

    def get_parameters(self) -> dict[str, Any]:
        return {}

    def get_limits(self) -> dict[str, Any]:
        return {}

    async def infer(self, request: Any, call: Call) -> Any:
        raise AssertionError("no V2 request belongs here")

    def note(self, body: ChatBody | ImagesBody, call: Call) -> None:
        self.bodies.append(body)
        self.calls.append(call)
        if self.error is not None:
            raise self.error


class Painter(Model):
    """Serves images; `hold` makes it wait until it is cancelled."""

    hold = False
    late_error: BaseException | None = None

    def __init__(self, name: str = "flux") -> None:
        super().__init__(name)
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        self.note(body, call)
        self.entered.set()
        if self.hold:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return {"created": 1, "data": [{"b64_json": "AAAA", "seed": 7}] * body.n}

    async def edits(self, body: EditsBody, call: Call) -> dict[str, Any]:
        return await self.images(body, call)

    def edits_stream(self, body: EditsBody, call: Call) -> AsyncIterator[bytes]:
        return self.images_stream(body, call)

    async def images_stream(self, body: ImagesBody, call: Call) -> AsyncIterator[bytes]:
        """As many previews as were asked for, one step, then `late_error` or the picture."""
        self.note(body, call)
        events = ImageEvents(body.events, "64x64", "png")
        try:
            yield b""
            for i in range(body.partial_images):
                yield events.partial(i, b"preview %d" % i)
            if body.progress:
                yield events.progress(1, 2)
            if self.hold:
                self.entered.set()
                await asyncio.Event().wait()
            if self.late_error is not None:
                raise self.late_error
            usage = {"input_tokens": 3, "output_tokens": 16, "total_tokens": 19} | {
                "input_tokens_details": {"image_tokens": 0, "text_tokens": 3}
            }
            picture = {"b64_json": "AAAA", "seed": 7}
            yield events.completed({"created": 1, "data": [picture], "usage": usage})
        finally:
            self.cancelled.set()


class Chatter(Model):
    """Serves chat. A stream yields `words`. It raises `late_error` before word `fail_at`, and waits
    before word `hold_at`.
    """

    def __init__(
        self, name: str = "qwen-vl", words: tuple[str, ...] = ("a ", "red ", "circle")
    ) -> None:
        super().__init__(name)
        self.words = words
        self.fail_at = -1
        self.late_error: BaseException = RuntimeError("secret /mnt/models at 0x7f00")
        self.hold_at = -1
        self.num_written = 0
        """Words that went to the call's writer."""
        self.holding = asyncio.Event()
        self.closed = asyncio.Event()

    async def chat(self, body: ChatBody, call: Call) -> dict[str, Any]:
        self.note(body, call)
        message = {"role": "assistant", "content": "".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": call.request_id, "object": "chat.completion", "created": 1} | {
            "model": self.name,
            "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        }

    async def chat_stream(self, body: ChatBody, call: Call) -> AsyncIterator[bytes]:
        try:
            self.note(body, call)
            yield b""
            for i, word in enumerate(self.words):
                if i == self.fail_at:
                    raise self.late_error
                if i == self.hold_at:
                    self.holding.set()
                    await asyncio.Event().wait()
                made = event(self._chunk(call, {"content": word}))
                if call.writer is not None and call.writer.is_open:
                    call.writer.write(made)
                    self.num_written += 1
                else:
                    yield made
            yield event(self._chunk(call, {}, finish_reason="stop"))
            if body.stream_options.include_usage:
                usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
                yield event(self._chunk(call, None) | {"usage": usage})
        finally:
            self.closed.set()

    def _chunk(self, call: Call, delta: Any, **more: Any) -> dict[str, Any]:
        choices = (
            [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None} | more]
        )
        head = {"id": call.request_id, "object": "chat.completion.chunk", "created": 1}
        return head | {"model": self.name, "choices": choices}


class Deaf(Model): ...


def application(*models: Model, settings: Settings | None = None) -> RestApp:
    return mounted(Registry(models, settings or Settings()))


def mounted(registry: Registry) -> RestApp:
    return RestApp(openai_routes(registry), access_log=True)


class Wire:
    """One request to an ASGI application and its response. As in uvicorn, nothing is sent after
    `leave`.
    """

    def __init__(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        self.method = method
        self.path = path
        self.headers = {k.lower().replace("_", "-"): v for k, v in headers.items()}
        self.status = 0
        self.answered: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.is_complete = False
        self.on_return: Callable[[], object] = lambda: None
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._news = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def run(self, app: Any) -> Wire:
        scope: dict[str, Any] = {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "root_path": "",
            "query_string": b"",
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in self.headers.items()],
            "raw_path": self.path.encode(),
        }
        async with asyncio.timeout(PATIENCE_S):
            await app(scope, self._receive, self._send)
            self.on_return()  # before any other task of the loop runs
        return self

    async def part(self, index: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.parts) <= index:
                self._news.clear()
                await self._news.wait()
        return self.parts[index]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The inner object of an OpenAI error body, which must have all four fields and no more."""
        error: dict[str, Any] = self.json["error"]
        assert set(self.json) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        return error

    async def _receive(self) -> MutableMapping[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert self.status == 0, "a second answer was begun"
            self.status = message["status"]
            self.answered = {k.decode(): v.decode() for k, v in message["headers"]}
            return
        assert not self.is_complete, "something was sent after the end"
        if message.get("body"):
            self.parts.append(message["body"])
        self.is_complete = not message.get("more_body", False)
        self._news.set()


def post(path: str, body: Any, **headers: str) -> Wire:
    """A POST of JSON; bytes go as they are."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Wire("POST", path, raw, **{"content_type": "application/json"} | headers)


def counted(model: str, operation: str, reason: str) -> float:
    return metrics.requests_total.labels(model, "openai", operation, reason)._value.get()  # type: ignore[no-any-return]


def same_as_golden(name: str, wire: Wire, folder: Path = GOLDEN) -> None:
    """Compare the response with a transcript. If that is missing, write it and fail."""
    head = "".join(f"{k}: {v}\n" for k, v in sorted(wire.answered.items()))
    transcript = f"{wire.status}\n{head}\n".encode() + wire.body
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(transcript)
        pytest.fail(f"{path} was written; read it and run again")
    assert transcript == path.read_bytes()
