"""Two predictors without a model behind the OpenAI routes, with the real base class and host.

`Artist` answers pictures, `Writer` answers chat; both in front of any engine for `Task`s. The
last user message is the name of the task, `max_tokens` and `num_inference_steps` are its steps,
and every step is a word of the answer.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from predictors.base import Submission
from predictors.metrics import ModelSeries
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.events import event
from predictors.protocol.openai.image_events import ImageEvents
from predictors.protocol.openai.images_body import ImagesBody
from predictors.serving.engine import Engine
from predictors.settings import Settings
from tests.fakes import EchoEngine, Task
from tests.http.echo import Row, TaskPredictor, png


def words() -> Engine[Task, str]:
    """A free-running engine that answers task `a` of two steps with `a:1`, `a:2`."""
    return EchoEngine(steps=lambda task: task.steps, chunk=lambda t, i: f"{t.name}:{i}")


class Artist(TaskPredictor):
    """Serves images and their edits."""

    task = "flux"
    series = ModelSeries(operations=("infer", "images", "edits"))
    preview = png((0, 0, 255))

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        row = Row(body.prompt, steps=body.num_inference_steps or 1)
        answers = await self.run([row] * body.n, call)
        file = base64.b64encode(png()).decode("ascii")
        data = [{"b64_json": file, "seed": i} for i, _ in enumerate(answers)]
        return {"created": 1, "data": data, "size": "8x8", "output_format": "png"}

    async def edits(self, body: EditsBody, call: Call) -> dict[str, Any]:
        """The files that were sent come back as they are, the mask last."""
        sent = [*body.images, *([body.mask] if body.mask is not None else [])]
        await self.run([Row(body.prompt)] * body.n, call)
        data = [{"b64_json": base64.b64encode(each.file).decode(), "seed": 0} for each in sent]
        read = {"prompt": body.prompt, "strength": body.strength, "n": body.n}
        return {"created": 1, "data": data, "output_format": "png", **read}

    def edits_stream(self, body: EditsBody, call: Call) -> AsyncIterator[bytes]:
        return self.images_stream(body, call)

    async def images_stream(self, body: ImagesBody, call: Call) -> AsyncIterator[bytes]:
        """A preview after each step up to `partial_images`, the picture after the last."""
        row = Row(body.prompt, steps=body.num_inference_steps or 1)
        submissions = await self.submit([row], call)
        events, count = ImageEvents(body.events, "8x8", "png"), 0
        try:
            yield b""
            async with aclosing(submissions[0].chunks()) as chunks:  # type: ignore[type-var]
                async for _ in chunks:
                    count += 1
                    if body.progress:
                        yield events.progress(count, row.steps)
                    if count <= body.partial_images:
                        yield events.partial(count - 1, self.preview)
        finally:
            self.finish_call(submissions, call)
            self.left.set()
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2} | {
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 1}
        }
        picture = {"b64_json": base64.b64encode(png()).decode("ascii"), "seed": 0}
        yield events.completed({"created": 1, "data": [picture], "usage": usage})


class Writer(TaskPredictor):
    """Serves chat. `accepted` is released when a request's jobs are queued, `left` when its
    caller has its answer or is gone.
    """

    task = "qwen_vl"
    series = ModelSeries(operations=("infer", "chat"))

    def __init__(self, name: str, engine: Engine[Task, str], settings: Settings) -> None:
        super().__init__(name, engine, settings)
        self.accepted = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    async def submit(self, requests: Sequence[Row], call: Call) -> list[Submission[Any, Any]]:
        submissions = await super().submit(requests, call)
        self.accepted.release()
        return submissions

    async def chat(self, body: ChatBody, call: Call) -> dict[str, Any]:
        try:
            return await self._chat(body, call)
        finally:
            self.left.release()

    async def _chat(self, body: ChatBody, call: Call) -> dict[str, Any]:
        answers = await self.run(self._rows(body), call)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": " ".join(answer.chunks)},
                "finish_reason": "stop",
            }
            for i, answer in enumerate(answers)
        ]
        used = self._usage(len(answers[0].chunks))
        return self._head(call, "chat.completion") | {"choices": choices, "usage": used}

    async def chat_stream(self, body: ChatBody, call: Call) -> AsyncIterator[bytes]:
        (submission,) = await self.submit(self._rows(body), call)
        head = self._head(call, "chat.completion.chunk")
        count = 0
        try:
            yield b""
            async with aclosing(submission.chunks()) as chunks:  # type: ignore[type-var]
                async for word in chunks:
                    count += 1
                    yield event(head | {"choices": [_choice({"content": word}, None)]})
        finally:
            self.left.release()
        yield event(head | {"choices": [_choice({}, "stop")]})
        if body.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": self._usage(count)})

    def _rows(self, body: ChatBody) -> list[Row]:
        (name,) = body.messages[-1].parts
        assert isinstance(name, str)
        row = Row(name, steps=body.max_tokens or 1)
        return [row] * body.n

    def _head(self, call: Call, kind: str) -> dict[str, Any]:
        return {"id": call.request_id, "object": kind, "created": 1, "model": self.name}

    def _usage(self, count: int) -> dict[str, int]:
        return {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": 1 + count}


def _choice(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}
