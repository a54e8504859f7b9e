"""OpenAI's chat answers, whole and as events, and the fields that both have."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from predictors.base import Answer
from predictors.chat.film import FilmSize
from predictors.chat.grounding.boxes import PictureBox
from predictors.chat.logprobs import LogprobWriter, LogprobWriters
from predictors.chat.pieces import CallPiece, PieceReader, TextPiece, whole_answer
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    PictureSize,
    PromptSize,
    TokenLogprob,
    boxes_of,
    cached_tokens_of,
    pictures_of,
    scores_of,
)
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.events import TextEvents, event
from predictors.protocol.openai.tool_calls import ToolCall

ChatAnswer = Answer[ChatRequest, ChatDelta]


class Timed(Protocol):
    """An answered or running row."""

    @property
    def queue_ms(self) -> int: ...

    @property
    def compute_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    pictures: tuple[PromptSize, ...]
    scores: tuple[TokenLogprob, ...]
    cached_tokens: int | None
    calls: tuple[ToolCall, ...] | None = None
    """None where no tool might be called."""
    boxes: tuple[PictureBox, ...] | None = None

    @classmethod
    def of(cls, answer: ChatAnswer) -> Completion:
        """The joined deltas; the last one has reason and counts."""
        last = answer.chunks[-1]
        assert last.finish_reason is not None
        reason = last.finish_reason
        calls: tuple[ToolCall, ...] | None = None
        if answer.request.tools is None:
            text = "".join(delta.text for delta in answer.chunks)
        else:
            text, calls, reason = whole_answer(answer.request, answer.chunks)
        return cls(
            text=text,
            finish_reason=reason,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            pictures=pictures_of(last),
            scores=tuple(score for delta in answer.chunks for score in scores_of(delta)),
            cached_tokens=cached_tokens_of(last),
            calls=calls,
            boxes=boxes_of(last),
        )


class ChunkEncoder:
    """Encodes one chat: a streamed one as roles first, then texts; counts and times last."""

    opens_at_once = False

    def __init__(
        self,
        body: ChatBody,
        call: Call,
        precision: str,
        requests: Sequence[ChatRequest],
        writers: LogprobWriters | None = None,
    ) -> None:
        self._body, self._call = body, call
        self._logprobs: LogprobWriter | None = None
        if requests[0].controls.logprobs is not None and writers is not None:
            as_ids = body.tokens.return_tokens_as_token_ids
            self._logprobs = writers.of(requests[0], as_ids=as_ids)
        self._cached: int | None = None  # of choice 0
        self._head = chat_head(body, call, "chat.completion.chunk")
        self._with_usage = body.stream_options.include_usage
        self._in_every_chunk = body.stream_options.continuous_usage_stats
        self._counts = [(0, 0)] * len(requests)
        self._open = len(requests)
        own = requests[0]
        self._last = {"precision": precision, "seed": own.seed, **shown_adapters(own)}
        self._texts: dict[int, TextEvents] = {}  # by choice
        self._readers: list[PieceReader] | None = None  # by choice
        if own.tools is not None:
            self._readers = [PieceReader(request) for request in requests]

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """A `chat.completion`."""
        completions = [Completion.of(answer) for answer in answers]
        writer = self._logprobs
        choices = [
            {
                "index": i,
                "message": _message(completion),
                "logprobs": None if writer is None else writer.whole(completion.scores),
                "finish_reason": completion.finish_reason,
            }
            for i, completion in enumerate(completions)
        ]
        counts = [
            (completion.prompt_tokens, completion.completion_tokens) for completion in completions
        ]
        return {
            **chat_head(self._body, self._call, "chat.completion"),
            "choices": choices,
            "usage": usage(counts, completions[0].pictures, completions[0].cached_tokens),
            "timings": slowest(answers),
            **self._last,
        }

    def opening(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        chunks = [self._chunk([_choice(i, role, None)]) for i in range(len(self._counts))]
        return b"".join(map(event, chunks))

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas of choice `index`, with their texts joined. `timings` is called
        once, at the end. No delta may follow one with a finish reason."""
        last = deltas[-1]
        self._counts[index] = (last.prompt_tokens, last.completion_tokens)
        if self._readers is not None:
            return self._pieces(index, deltas, self._readers[index], timings)
        text = last.text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        if self._logprobs is not None:
            events = self._scored(index, text, [s for delta in deltas for s in scores_of(delta)])
        else:
            events = self._text(index, text) if text else b""
        if last.finish_reason is not None:
            events += self._ending(index, last, last.finish_reason, timings)
        return events

    def _pieces(
        self,
        index: int,
        deltas: Sequence[ChatDelta],
        reader: PieceReader,
        timings: Callable[[], Mapping[str, int]],
    ) -> bytes:
        """The events of an answer that may call tools."""
        events = b""
        for piece in reader.read(deltas):
            shown = {"content": piece.text} if isinstance(piece, TextPiece) else _call_delta(piece)
            choice = _choice(index, shown, None)
            if self._logprobs is not None:
                choice["logprobs"] = self._logprobs.part(piece.scores)
            events += event(self._chunk([choice]))
        if reader.finish_reason is not None:
            events += self._ending(index, deltas[-1], reader.finish_reason, timings)
        return events

    def _text(self, index: int, text: str) -> bytes:
        if self._in_every_chunk:  # they differ in more than the text
            return event(self._text_chunk(index, text))
        events = self._texts.get(index)
        if events is None:
            events = self._texts[index] = TextEvents(self._text_chunk(index, ""))
        return events.event(text)

    def _scored(self, index: int, text: str, scores: Sequence[TokenLogprob]) -> bytes:
        """A text with its logprobs: both or none come, but for tokens that make no text."""
        if self._logprobs is None or not (text or scores):
            return b""
        choice = _choice(index, {"content": text}, None)
        return event(self._chunk([choice | {"logprobs": self._logprobs.part(scores)}]))

    def _ending(
        self,
        index: int,
        last: ChatDelta,
        reason: str,
        timings: Callable[[], Mapping[str, int]],
    ) -> bytes:
        chunks = [self._chunk([_choice(index, shown_boxes(boxes_of(last)), reason)])]
        self._open -= 1
        if index == 0:
            self._cached = cached_tokens_of(last)
        if self._open == 0:
            if self._with_usage:
                used = usage(self._counts, pictures_of(last), self._cached)
                chunks.append({**self._chunk([]), "usage": used})
            chunks[-1] |= {"timings": dict(timings()), **self._last}
        return b"".join(map(event, chunks))

    def _text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk([_choice(index, {"content": text}, None)])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "choices": choices}
        if not self._with_usage:
            return chunk
        return {**chunk, "usage": usage(self._counts) if self._in_every_chunk else None}


def slowest(rows: Sequence[Timed]) -> dict[str, int]:
    """The times of an answer."""
    return {
        "queue_ms": max(row.queue_ms for row in rows),
        "compute_ms": max(row.compute_ms for row in rows),
    }


def usage(
    counts: Sequence[tuple[int, int]],
    pictures: Sequence[PromptSize] = (),
    cached_tokens: int | None = None,
) -> dict[str, Any]:
    """OpenAI's usage of choices with (prompt, completion) tokens: the prompt is counted once. The
    sizes of its pictures and films stand beside it if there are any, and how many of its tokens the
    prefix cache held if that is on."""
    prompt, completion = counts[0][0], sum(completion for _, completion in counts)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached_tokens is not None:
        counted["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if stills := [size for size in pictures if isinstance(size, PictureSize)]:
        counted["prompt_images"] = [_shown_size(size) for size in stills]
    if films := [asdict(size) for size in pictures if isinstance(size, FilmSize)]:
        counted["prompt_videos"] = films
    return counted


def _shown_size(size: PictureSize) -> dict[str, int]:
    """A size as it was read; that of the file is only for boxes."""
    return {key: value for key, value in asdict(size).items() if not key.startswith("file_")}


def shown_boxes(boxes: Sequence[PictureBox] | None) -> dict[str, Any]:
    """The field of a message with an answer's boxes; none for None."""
    return {} if boxes is None else {"boxes": list_boxes(boxes)}


def list_boxes(boxes: Sequence[PictureBox]) -> list[dict[str, Any]]:
    return [{"picture": x.picture, "label": x.label, "box": list(x.box)} for x in boxes]


def used_adapters(request: ChatRequest) -> list[dict[str, str | float]]:
    scales = request.adapters.scales
    return [{"name": adapter.name, "scale": scale} for adapter, scale in scales]


def shown_adapters(request: ChatRequest) -> dict[str, Any]:
    used = used_adapters(request)
    return {"loras": used} if used else {}


def chat_head(body: ChatBody, call: Call, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{call.request_id}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": body.model}


def list_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """In OpenAI's form."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def _message(completion: Completion) -> dict[str, Any]:
    content = completion.text if completion.text or not completion.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if completion.calls:
        message["tool_calls"] = list_calls(completion.calls)
    return message | shown_boxes(completion.boxes)


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    function = {"arguments": piece.arguments}
    if piece.name is None:
        return {"tool_calls": [{"index": piece.index, "function": function}]}
    named = {"name": piece.name, **function}
    call = {"index": piece.index, "id": piece.id, "type": "function", "function": named}
    return {"tool_calls": [call]}


def _choice(index: int, delta: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
