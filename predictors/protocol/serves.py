"""Protocols of the models that the server and its routes work with.

`base.BasePredictor` implements `Served` and `Startable`, the predictors of a task the others.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from typing import Any, Protocol, runtime_checkable

from predictors.errors import EngineFailed
from predictors.protocol.call import Call
from predictors.protocol.openai.edits_body import EditsBody
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.tokens_body import DetokenizeBody, TokenizeBody
from predictors.protocol.text_body import TextBody
from predictors.protocol.v2.values import V2Request, V2Response


@runtime_checkable
class Served(Protocol):
    """A model that answers V2 requests. Event loop; no method blocks it."""

    name: str

    @property
    def file_inputs(self) -> Collection[str]:
        """V2 inputs that hold files: base64 where they come in JSON."""

    async def healthy(self) -> bool:
        """True while the model is warm, and its engine alive and not draining."""

    def get_input_types(self) -> list[dict[str, Any]]: ...

    def get_output_types(self) -> list[dict[str, Any]]: ...

    def get_parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """The V2 parameters by name, each as JSON Schema with its range and default."""

    def get_limits(self) -> Mapping[str, Any]:
        """Sizes, tiers and other limits of this model under the settings, as JSON values."""

    async def infer(self, request: V2Request, call: Call) -> V2Response:
        """Answer one V2 request. Cancelling the task cancels its jobs."""


@runtime_checkable
class Startable(Protocol):
    """A model with an engine, which the server starts, watches and stops."""

    @property
    def is_alive(self) -> bool:
        """False once the process should be restarted: a part of the model failed or hangs."""

    def start(self, on_failed: Callable[[EngineFailed], None] | None = None) -> None:
        """Begin to load and return at once. `on_failed` is called on the engine's thread after all
        that was in flight has been answered."""

    def cut_off(self) -> None:
        """Fail whatever is accepted and not answered. Blocks."""

    def stop(self) -> None:
        """Finish what was accepted and release the device. Blocks."""


@runtime_checkable
class TellsWarming(Protocol):
    """A model that may be ready before all of its promised shapes are warm."""

    @property
    def warming(self) -> tuple[int, int] | None:
        """Shapes that are warm, and all, while it is ready and some are not; else None."""


@runtime_checkable
class Queued(Protocol):
    """A model whose requests wait in a bounded queue."""

    def check_room(self, call: Call, rows: int = 1) -> None:
        """Raise what a request of so many rows would be refused with now. Takes microseconds."""


@runtime_checkable
class ServesAdapters(Protocol):
    """A model with adapters, each of which is a name of it: `MODEL:ADAPTER`."""

    @property
    def adapter_names(self) -> Sequence[str]:
        """Names of the adapters that requests may use now."""


@runtime_checkable
class Prepares(Protocol):
    """A model with threads that prepare its requests."""

    @property
    def backlog(self) -> int:
        """Calls that wait for a thread."""


@runtime_checkable
class StreamsInference(Served, Protocol):
    """A model that may answer a V2 request with several responses."""

    def infer_stream(self, request: V2Request, call: Call) -> AsyncGenerator[V2Response]:
        """The responses as they come; only the last is the complete one. Closing the generator
        cancels the jobs."""


@runtime_checkable
class ServesImages(Served, Protocol):
    """A model behind `POST /v1/images/generations`."""

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]: ...

    def images_stream(self, body: ImagesBody, call: Call) -> AsyncIterator[bytes]:
        """The events of one picture, in the terms of `chat_stream`: previews and steps if they
        were asked for, and the picture."""


@runtime_checkable
class ServesEdits(Served, Protocol):
    """A model behind `POST /v1/images/edits`."""

    async def edits(self, body: EditsBody, call: Call) -> dict[str, Any]: ...

    def edits_stream(self, body: EditsBody, call: Call) -> AsyncIterator[bytes]:
        """As `images_stream`."""


@runtime_checkable
class ServesTokens(Served, Protocol):
    """A model behind `POST /tokenize` and `POST /detokenize`."""

    async def tokenize(self, body: TokenizeBody, call: Call) -> dict[str, Any]:
        """vLLM's answer: `count`, `max_model_len`, `tokens`, `token_strs`."""

    async def detokenize(self, body: DetokenizeBody, call: Call) -> dict[str, Any]:
        """vLLM's answer: `prompt`."""


@runtime_checkable
class ServesChat(Served, Protocol):
    """A model behind the routes that answer with text."""

    async def chat(self, body: TextBody, call: Call) -> dict[str, Any]:
        """The whole answer, in the form of the body's route."""

    def chat_stream(self, body: TextBody, call: Call) -> AsyncIterator[bytes]:
        """The reply's server-sent events in the form of the body's route, one or several at a time,
        without `[DONE]`. Closing the iterator cancels the jobs.

        The first item comes when the jobs are accepted, and may be empty: the response's head is
        sent then. Every refusal is raised before it, so that it gets a status of its own.
        """


_OFFERED: dict[tuple[type, type], bool] = {}


def offers(model: Served, kind: Any) -> bool:
    """isinstance(model, kind), kept per class: with a Protocol it takes up to 0.1 ms."""
    key = (type(model), kind)
    found = _OFFERED.get(key)
    if found is None:
        found = _OFFERED[key] = isinstance(model, kind)
    return found
