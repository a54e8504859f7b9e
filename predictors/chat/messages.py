"""Answers of `POST /v1/messages`, whole and as Anthropic's events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from predictors.chat.chunks import ChatAnswer, shown_adapters, shown_boxes, slowest, usage
from predictors.chat.pieces import TOOL_CALLS, CallPiece, Piece, PieceReader
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    boxes_of,
    cached_tokens_of,
    pictures_of,
    stop_text_of,
)
from predictors.chat.tools.tag_reader import refuse_constant
from predictors.protocol.anthropic.messages_body import MessagesBody
from predictors.protocol.call import Call
from predictors.protocol.openai.events import named_event

_PING = named_event("ping", {"type": "ping"})


class MessagesEncoder:
    """Encodes one message. The stream opens with its first tokens, when those of the prompt are
    counted."""

    opens_at_once = False

    def __init__(
        self, body: MessagesBody, call: Call, precision: str, requests: Sequence[ChatRequest]
    ) -> None:
        (request,) = requests
        self._reader = PieceReader(request)
        self._head = {
            "id": f"msg_{call.request_id}",
            "type": "message",
            "role": "assistant",
            "model": body.model,
        }
        self._ours = {"precision": precision, "seed": request.seed, **shown_adapters(request)}
        self._begun = False
        self._index = -1  # of the open block
        self._open: object = None
        """The open block: the number of its call, or `text`; None before the first."""

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """A `message`."""
        (answer,) = answers
        content = [_block(piece) for piece in self._reader.read(answer.chunks)]
        last = answer.chunks[-1]
        ended = {**self._stop(last), "usage": _counted(last)}
        return {**self._head, "content": content, **ended, **self._rest(last, slowest(answers))}

    def opening(self) -> bytes:
        return b""

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas. `timings` is called once, at the end."""
        events = [] if self._begun else [self._start(deltas[0]), _PING]
        self._begun = True
        for piece in self._reader.read(deltas):
            events += self._events(piece)
        last = deltas[-1]
        if last.finish_reason is not None:
            events += self._close()
            ended = {"delta": self._stop(last), "usage": _counted(last)}
            events.append(_event("message_delta", **ended, **self._rest(last, timings())))
            events.append(_event("message_stop"))
        return b"".join(events)

    def _start(self, first: ChatDelta) -> bytes:
        begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**self._head, **begun, "usage": _counted(first)})

    def _events(self, piece: Piece) -> Iterator[bytes]:
        kind: object = piece.index if isinstance(piece, CallPiece) else "text"
        if kind != self._open:
            yield from self._close()
            self._index, self._open = self._index + 1, kind
            begun = _opened_call(piece) if isinstance(piece, CallPiece) else _text("")
            yield _event("content_block_start", index=self._index, content_block=begun)
        if isinstance(piece, CallPiece):
            delta = {"type": "input_json_delta", "partial_json": piece.arguments}
        else:
            delta = {"type": "text_delta", "text": piece.text}
        yield _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._index)

    def _stop(self, last: ChatDelta) -> dict[str, Any]:
        reason, found = self._reader.finish_reason, stop_text_of(last)
        if reason == TOOL_CALLS:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        kind = "end_turn" if found is None else "stop_sequence"
        return {"stop_reason": kind, "stop_sequence": found}

    def _rest(self, last: ChatDelta, timings: Mapping[str, int]) -> dict[str, Any]:
        return {"timings": dict(timings), **self._ours, **shown_boxes(boxes_of(last))}


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _opened_call(piece: CallPiece) -> dict[str, Any]:
    return {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}


def _block(piece: Piece) -> dict[str, Any]:
    """A whole block. The input of a call that was cut off is no JSON: it stands beside an empty
    one, as a text."""
    if not isinstance(piece, CallPiece):
        return _text(piece.text)
    begun = _opened_call(piece)
    try:
        json.loads(piece.arguments, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return {**begun, "partial_json": piece.arguments}
    # as the model wrote it: large numbers and half surrogates stay what they are
    return {**begun, "input": orjson.Fragment(piece.arguments)}


def _counted(delta: ChatDelta) -> dict[str, Any]:
    """Anthropic's usage. Tokens of the prompt that the prefix cache held are counted apart, which
    is known with the last delta."""
    pictures = pictures_of(delta)
    counted = usage([(delta.prompt_tokens, delta.completion_tokens)], pictures)
    cached = cached_tokens_of(delta) or 0
    return {
        "input_tokens": delta.prompt_tokens - cached,
        "output_tokens": delta.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        **{name: counted[name] for name in ("prompt_images",) if name in counted},
    }
