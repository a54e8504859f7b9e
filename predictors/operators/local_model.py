"""One model in this process, asked as OpenAI's routes ask it, without a server or a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from predictors.base import BasePredictor
from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import decode_chat_body
from predictors.protocol.openai.fields import DecodedBody
from predictors.protocol.openai.images_body import decode_images_body
from predictors.protocol.serves import ServesChat, ServesImages

Predictor = BasePredictor[Any, Any, Any]


class WarmModel:
    """A model that is ready; for the thread that made it."""

    def __init__(self, model: Predictor, runner: asyncio.Runner) -> None:
        self._model = model
        self._runner = runner
        self.name = str(model.name)
        self.draws = isinstance(model, ServesImages)

    def stream(self, route: str, body: bytes) -> Iterator[bytes]:
        """The events of the answer. Raises `ServingError`, and `KeyboardInterrupt` after Ctrl-C;
        either way the job is cancelled."""
        events = self._events(route, body)
        try:
            while True:
                piece = self._runner.run(_next(events))
                if piece is None:
                    return
                yield piece
        finally:
            self._runner.run(events.aclose())  # type: ignore[attr-defined]

    def _events(self, route: str, body: bytes) -> AsyncIterator[bytes]:
        call = Call({}, protocol="openai")
        model: Any = self._model
        if isinstance(model, ServesImages) and route.endswith("/images/generations"):
            return model.images_stream(accepted(decode_images_body, body), call)
        if isinstance(model, ServesChat) and route.endswith("/chat/completions"):
            return model.chat_stream(accepted(decode_chat_body, body), call)
        raise InvalidRequest(f"{self.name} does not serve {route}")


def accepted(decode: Callable[[bytes], DecodedBody[Any]], body: bytes) -> Any:
    return decode(body).accepted()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)


@contextmanager
def warm_local_model(model: Predictor) -> Iterator[WarmModel]:
    """`model`, loaded and warm, until the block ends. Raises `EngineFailed`."""
    try:
        model.start()
        model.host.wait_ready()
        with asyncio.Runner() as runner:
            yield WarmModel(model, runner)
    finally:
        model.stop()
