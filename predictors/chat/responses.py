"""Answers of `POST /v1/responses`, whole and as OpenAI's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from predictors.chat.chunks import ChatAnswer, shown_adapters, shown_boxes, slowest, usage
from predictors.chat.logprobs import LogprobWriter, LogprobWriters
from predictors.chat.pieces import CallPiece, Piece, PieceReader
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    TokenLogprob,
    boxes_of,
    cached_tokens_of,
    pictures_of,
)
from predictors.protocol.call import Call
from predictors.protocol.openai.response_object import (
    COMPLETED,
    IN_PROGRESS,
    INCOMPLETE,
    numbered_event,
    response_object,
)
from predictors.protocol.openai.responses_body import ResponsesBody

Event = tuple[str, dict[str, Any]]
"""Its type and its fields, without the sequence number."""
DELTA = "response.output_text.delta"
CALL_DELTA = "response.function_call_arguments.delta"


class OutputItems:
    """The items of one answer, which grow with its pieces: a message for each run of text, and a
    function call for each call."""

    def __init__(self, identity: str, logprobs: LogprobWriter | None = None) -> None:
        self._identity = identity
        self._logprobs = logprobs
        self._scores: list[bytes] = []  # of the open message, as JSON
        self.items: list[dict[str, Any]] = []
        """The complete items, as the answer shows them."""
        self._texts: list[str] = []
        self._open: dict[str, Any] | None = None
        self._call = -1

    def add(self, pieces: Sequence[Piece]) -> Iterator[Event]:
        """The events of new pieces."""
        for piece in pieces:
            if isinstance(piece, CallPiece):
                if piece.index != self._call:
                    yield from self._close(COMPLETED)
                    self._call = piece.index
                    yield self._begin(self._call_item(piece))
                if piece.arguments:
                    self._texts.append(piece.arguments)
                    yield CALL_DELTA, {**self._place(), "delta": piece.arguments}
            elif piece.text or piece.scores:
                if self._open is None or self._open["type"] != "message":
                    yield from self._close(COMPLETED)
                    yield from self._begin_message()
                self._texts.append(piece.text)
                scores = self._written(piece.scores)
                yield DELTA, {**self._part_place(), "logprobs": scores, "delta": piece.text}

    def end(self, status: str) -> Iterator[Event]:
        """The events of the answer's end; the last item gets `status`. There is at least one."""
        if self._open is None and not self.items:
            yield from self._begin_message()
        yield from self._close(status)

    def _begin_message(self) -> Iterator[Event]:
        number = len(self.items)
        identity = f"msg_{self._identity}" + (f"_{number}" if number else "")
        item = {"id": identity, "type": "message", "role": "assistant", "content": []}
        yield self._begin(item)
        yield "response.content_part.added", {**self._part_place(), "part": _text_part("", [])}

    def _call_item(self, piece: CallPiece) -> dict[str, Any]:
        return {
            "id": f"fc_{self._identity}_{len(self.items)}",
            "type": "function_call",
            "call_id": piece.id,
            "name": piece.name,
            "arguments": "",
        }

    def _begin(self, item: dict[str, Any]) -> Event:
        self._open, self._texts, self._scores = item, [], []
        added = {**item, "status": IN_PROGRESS}
        return "response.output_item.added", {"output_index": len(self.items), "item": added}

    def _close(self, status: str) -> Iterator[Event]:
        item, text = self._open, "".join(self._texts)
        if item is None:
            return
        if item["type"] == "message":
            # finished JSON: those of a long answer have megabytes, and are shown four times
            scores = orjson.Fragment(b"[%b]" % b",".join(self._scores)) if self._scores else []
            part = _text_part(text, scores)
            done = {"text": text, "logprobs": scores}
            yield "response.output_text.done", {**self._part_place(), **done}
            yield "response.content_part.done", {**self._part_place(), "part": part}
            item["content"] = [part]
        else:
            item["arguments"] = text
            done = {"name": item["name"], "arguments": text}
            yield "response.function_call_arguments.done", {**self._place(), **done}
        item["status"] = status
        yield "response.output_item.done", {"output_index": len(self.items), "item": item}
        self.items.append(item)
        self._open = None

    def _written(self, scores: Sequence[TokenLogprob]) -> object:
        if self._logprobs is None or not scores:
            return []
        written = orjson.dumps(self._logprobs.content(scores))
        self._scores.append(written[1:-1])
        return orjson.Fragment(written)

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    def _part_place(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}


def _text_part(text: str, scores: object) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


class ResponsesEncoder:
    """Encodes one response."""

    opens_at_once = True

    def __init__(
        self,
        body: ResponsesBody,
        call: Call,
        precision: str,
        requests: Sequence[ChatRequest],
        writers: LogprobWriters | None = None,
    ) -> None:
        self._body, self._call = body, call
        (self._request,) = requests
        self._precision = precision
        self._reader = PieceReader(self._request)
        logprobs = None if writers is None else writers.of(self._request, as_ids=False)
        self._items = OutputItems(call.request_id, logprobs)
        self._number = 0

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """A `response`."""
        (answer,) = answers
        for _ in self._items.add(self._reader.read(answer.chunks)):
            pass
        for _ in self._items.end(self._status()):
            pass
        return self._ended(answer.chunks[-1], slowest(answers))

    def opening(self) -> bytes:
        response = self._object(IN_PROGRESS)
        kinds = ("response.created", "response.in_progress")
        return b"".join([self._event(kind, {"response": response}) for kind in kinds])

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas. `timings` is called once, at the end."""
        events = [self._event(*each) for each in self._items.add(self._reader.read(deltas))]
        if deltas[-1].finish_reason is not None:
            status = self._status()
            events += [self._event(*each) for each in self._items.end(status)]
            response = self._ended(deltas[-1], timings())
            events.append(self._event(f"response.{status}", {"response": response}))
        return b"".join(events)

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return numbered_event(kind, number, fields)

    def _status(self) -> str:
        return INCOMPLETE if self._reader.finish_reason == "length" else COMPLETED

    def _ended(self, last: ChatDelta, timings: Mapping[str, int]) -> dict[str, Any]:
        status = self._status()
        cut = {"reason": "max_output_tokens"} if status == INCOMPLETE else None
        counts = [(last.prompt_tokens, last.completion_tokens)]
        counted = usage(counts, pictures_of(last), cached_tokens_of(last))
        return self._object(
            status,
            self._items.items,
            incomplete_details=cut,
            usage=_responses_usage(counted),
            timings=dict(timings),
            **shown_boxes(boxes_of(last)),
        )

    def _object(self, status: str, output: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
        sampling = self._request.sampling
        in_force = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        ours = {
            "precision": self._precision,
            "seed": self._request.seed,
            **shown_adapters(self._request),
        }
        return response_object(self._body, self._call, status, output, **in_force, **ours, **more)


def _responses_usage(counted: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's usage in the names of this route."""
    found = {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, **counted.get("prompt_tokens_details", {})},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }
    if "prompt_images" in counted:
        found["prompt_images"] = counted["prompt_images"]
    return found
