"""The encoder of each route that answers with text, by the type of its body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from predictors.chat.chunks import ChatAnswer, ChunkEncoder
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.request import ChatDelta, ChatRequest
from predictors.protocol.call import Call
from predictors.protocol.openai.text_body import TextBody


class AnswerEncoder(Protocol):
    """Writes one answer in the form of its route, whole or as server-sent events. Event loop."""

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """The body of the response, from the answers of all rows."""

    def opening(self) -> bytes:
        """The events before the first delta."""

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas of row `index`. `timings` is called once, at the end."""


def encoder_of(
    body: TextBody,
    call: Call,
    precision: str,
    requests: Sequence[ChatRequest],
    writers: LogprobWriters | None = None,
) -> AnswerEncoder:
    """The encoder of the answers to `requests`, which were made of `body`."""
    return ChunkEncoder(body, call, precision, requests, writers)
