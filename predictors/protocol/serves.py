"""What a route needs of a model, as Protocols. Knows no implementation: `base` and the rooms
provide them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.v2.values import V2Request, V2Response


@runtime_checkable
class Served(Protocol):
    """Any predictor. All methods run on the event loop and never block it."""

    name: str

    @property
    def file_inputs(self) -> Collection[str]:
        """V2 inputs that hold files: base64 where they come in JSON."""
        ...

    async def healthy(self) -> bool:
        """Ready: loaded, every promised shape warm, engine alive and not draining."""
        ...

    def get_input_types(self) -> list[dict[str, Any]]: ...

    def get_output_types(self) -> list[dict[str, Any]]: ...

    async def infer(self, request: V2Request, call: Call) -> V2Response:
        """One V2 request through `preprocess`, `predict`, `postprocess`. Cancelling the task
        cancels its jobs.
        """
        ...


@runtime_checkable
class ServesImages(Served, Protocol):
    """A predictor behind `POST /v1/images/generations`."""

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        """The reply's JSON."""
        ...


@runtime_checkable
class ServesChat(Served, Protocol):
    """A predictor behind `POST /v1/chat/completions`."""

    async def chat(self, body: ChatBody, call: Call) -> dict[str, Any]:
        """The reply's JSON."""
        ...

    def chat_stream(self, body: ChatBody, call: Call) -> AsyncIterator[bytes]:
        """The reply's `chat.completion.chunk`s as events (`openai_events`), one or several at a
        time, `[DONE]` left out. Closing the iterator cancels the jobs.

        Everything that can be refused is refused before the first chunk is yielded, so that it gets
        a status.
        """
        ...


class ProfileReport(Protocol):
    """What was recorded."""

    @property
    def table(self) -> Mapping[str, object]:
        """What took the time, as JSON can carry it."""
        ...

    @property
    def trace(self) -> bytes:
        """A gzipped Chrome trace."""
        ...


class Profiling(Protocol):
    """A profiler that a model's engine starts and stops; used once."""

    def start(self) -> None: ...

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def stop(self) -> None: ...

    def report(self) -> ProfileReport:
        """What was recorded, after `stop`. Any thread, takes seconds."""
        ...


class ProfileRecording(Protocol):
    """A recording that is on."""

    outcome: Future[int]

    def end(self) -> None:
        """Take no more steps; `outcome` is their number."""
        ...


@runtime_checkable
class Inspected(Protocol):
    """A predictor that operators may look into."""

    def describe(self) -> Mapping[str, object]:
        """What runs, waits and is cached, as JSON can carry it. Never blocks."""
        ...

    def record(self, recorder: Profiling, steps: int) -> ProfileRecording:
        """Record the next steps of live traffic. Raises what a request for work would."""
        ...
