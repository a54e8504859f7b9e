"""The parts of OpenAI's chat answers: the events of a streamed one, and the fields that whole and
streamed ones share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    FilmSize,
    PictureSize,
    pictures_of,
)
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.routes import TextEvents, event


class ChunkEncoder:
    """Encodes the events of one streamed chat: roles first, then texts; counts and times last."""

    def __init__(
        self, body: ChatBody, call: Call, precision: str, requests: Sequence[ChatRequest]
    ) -> None:
        self._head = chat_head(body, call, "chat.completion.chunk")
        self._with_usage = body.stream_options.include_usage
        self._in_every_chunk = body.stream_options.continuous_usage_stats
        self._counts = [(0, 0)] * len(requests)
        self._open = len(requests)
        own = requests[0]
        self._last = {"precision": precision, "seed": own.seed, **shown_adapters(own)}
        blank = [self._text_chunk(i, "") for i in range(len(requests))]
        self._texts = [TextEvents(chunk) for chunk in blank]

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
        return self._texts[index].event(text)

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


def usage(
    counts: Sequence[tuple[int, int]], pictures: Sequence[PictureSize | FilmSize] = ()
) -> dict[str, Any]:
    """OpenAI's usage of choices with (prompt, completion) tokens: the prompt is counted once. The
    sizes of its pictures and films stand beside it if there are any."""
    prompt, completion = counts[0][0], sum(completion for _, completion in counts)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    for name, kind in (("prompt_images", PictureSize), ("prompt_videos", FilmSize)):
        if sizes := [asdict(size) for size in pictures if isinstance(size, kind)]:
            counted[name] = sizes
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
