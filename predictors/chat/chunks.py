"""OpenAI's chat answers, whole and as events, and the fields that both have."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from predictors.base import Answer
from predictors.chat.request import ChatDelta, ChatRequest, PictureSize, pictures_of
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.events import TextEvents, event

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
    pictures: tuple[PictureSize, ...]

    @classmethod
    def of(cls, answer: ChatAnswer) -> Completion:
        """The joined deltas; the last one has reason and counts."""
        last = answer.chunks[-1]
        assert last.finish_reason is not None
        text = "".join(delta.text for delta in answer.chunks)
        counts = (last.prompt_tokens, last.completion_tokens)
        return cls(text, last.finish_reason, *counts, pictures_of(last))


class ChunkEncoder:
    """Encodes one chat: a streamed one as roles first, then texts; counts and times last."""

    def __init__(
        self, body: ChatBody, call: Call, precision: str, requests: Sequence[ChatRequest]
    ) -> None:
        self._body, self._call = body, call
        self._head = chat_head(body, call, "chat.completion.chunk")
        self._with_usage = body.stream_options.include_usage
        self._in_every_chunk = body.stream_options.continuous_usage_stats
        self._counts = [(0, 0)] * len(requests)
        self._open = len(requests)
        own = requests[0]
        self._last = {"precision": precision, "seed": own.seed, **shown_adapters(own)}
        self._texts: dict[int, TextEvents] = {}  # by choice

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """A `chat.completion`."""
        completions = [Completion.of(answer) for answer in answers]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
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
            "usage": usage(counts, completions[0].pictures),
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
        text = last.text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        events = self._text(index, text) if text else b""
        if last.finish_reason is not None:
            events += b"".join(map(event, self._ending(index, last, timings)))
        return events

    def _text(self, index: int, text: str) -> bytes:
        if self._in_every_chunk:  # they differ in more than the text
            return event(self._text_chunk(index, text))
        events = self._texts.get(index)
        if events is None:
            events = self._texts[index] = TextEvents(self._text_chunk(index, ""))
        return events.event(text)

    def _ending(
        self, index: int, last: ChatDelta, timings: Callable[[], Mapping[str, int]]
    ) -> list[dict[str, Any]]:
        chunks = [self._chunk([_choice(index, {}, last.finish_reason)])]
        self._open -= 1
        if self._open == 0:
            if self._with_usage:
                chunks.append({**self._chunk([]), "usage": usage(self._counts, pictures_of(last))})
            chunks[-1] |= {"timings": dict(timings()), **self._last}
        return chunks

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
    counts: Sequence[tuple[int, int]], pictures: Sequence[PictureSize] = ()
) -> dict[str, Any]:
    """OpenAI's usage of choices with (prompt, completion) tokens: the prompt is counted once. The
    sizes of its pictures stand beside it if there are any."""
    prompt, completion = counts[0][0], sum(completion for _, completion in counts)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if pictures:
        counted["prompt_images"] = [asdict(size) for size in pictures]
    return counted


def used_adapters(request: ChatRequest) -> list[dict[str, str | float]]:
    scales = request.adapters.scales
    return [{"name": adapter.name, "scale": scale} for adapter, scale in scales]


def shown_adapters(request: ChatRequest) -> dict[str, Any]:
    used = used_adapters(request)
    return {"loras": used} if used else {}


def chat_head(body: ChatBody, call: Call, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{call.request_id}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": body.model}


def _choice(index: int, delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
