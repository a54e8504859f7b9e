"""The text routes by the type of their bodies: how a body becomes requests, and answers its
response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from predictors.chat.chunks import ChatAnswer, ChunkEncoder
from predictors.chat.codec import ChatCodec, with_row_seeds
from predictors.chat.completions import CompletionsEncoder
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.messages import MessagesEncoder
from predictors.chat.request import ChatDelta, ChatRequest
from predictors.chat.responses import ResponsesEncoder
from predictors.protocol.anthropic.messages_body import MessagesBody
from predictors.protocol.call import ANY_ADAPTER, AdapterAccess, Call
from predictors.protocol.openai.completions_body import CompletionsBody
from predictors.protocol.openai.responses_body import ResponsesBody
from predictors.protocol.text_body import TextBody


class AnswerEncoder(Protocol):
    """Writes one answer in the form of its route, whole or as server-sent events. Event loop."""

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """The body of the response, from the answers of all rows."""

    opens_at_once: bool
    """The opening is sent when the jobs are accepted; else with the first deltas."""

    def opening(self) -> bytes:
        """The events before the first delta."""

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas of row `index`. `timings` is called once, at the end."""


def requests_of(
    body: TextBody, codec: ChatCodec, adapters: AdapterAccess = ANY_ADAPTER
) -> list[ChatRequest]:
    """One request per choice. Raises `InvalidRequest`."""
    if isinstance(body, ResponsesBody | MessagesBody):
        return codec.decode_chat(body.chat, adapters)
    if isinstance(body, CompletionsBody):
        (common,) = codec.decode_chat(replace(body.chat, n=1), adapters)
        rows = [
            replace(common, raw_prompt=each) for each in body.prompts for _ in range(body.chat.n)
        ]
        return with_row_seeds(rows, body.chat.seed)
    return codec.decode_chat(body, adapters)


def encoder_of(
    body: TextBody,
    call: Call,
    precision: str,
    requests: Sequence[ChatRequest],
    writers: LogprobWriters | None = None,
) -> AnswerEncoder:
    """The encoder of the answers to `requests`, which were made of `body`."""
    if isinstance(body, ResponsesBody):
        return ResponsesEncoder(body, call, precision, requests, writers)
    if isinstance(body, CompletionsBody):
        return CompletionsEncoder(body, call, precision, requests, writers)
    if isinstance(body, MessagesBody):
        return MessagesEncoder(body, call, precision, requests)
    return ChunkEncoder(body, call, precision, requests, writers)
