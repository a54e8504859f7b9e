"""Answers of `POST /v1/completions`, whole and as events. Choices are numbered over all prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictors.chat.chunks import ChatAnswer, Completion, shown_adapters, slowest
from predictors.chat.request import ChatDelta, ChatRequest
from predictors.protocol.call import Call
from predictors.protocol.openai.completions_body import CompletionsBody
from predictors.protocol.openai.events import event


class CompletionsEncoder:
    """Encodes the answers to one body."""

    def __init__(
        self, body: CompletionsBody, call: Call, precision: str, requests: Sequence[ChatRequest]
    ) -> None:
        self._requests = requests
        self._is_echoed, self._per_prompt = body.echo, body.chat.n
        self._with_usage = body.chat.stream_options.include_usage
        self._in_every_chunk = body.chat.stream_options.continuous_usage_stats
        self._counts = [(0, 0)] * len(requests)
        self._open = len(requests)
        self._head = {
            "id": f"cmpl-{call.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        own = requests[0]
        self._last = {"precision": precision, "seed": own.seed, **shown_adapters(own)}

    def whole(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """A `text_completion`."""
        completions = [Completion.of(answer) for answer in answers]
        self._counts = [(each.prompt_tokens, each.completion_tokens) for each in completions]
        choices = [
            _choice(i, self._echo(i) + each.text, each.finish_reason)
            for i, each in enumerate(completions)
        ]
        counted = {"usage": self._usage(), "timings": slowest(answers)}
        return {**self._head, "choices": choices, **counted, **self._last}

    def opening(self) -> bytes:
        """The prompts, where they are repeated."""
        if not self._is_echoed:
            return b""
        return b"".join(self._text(i, self._echo(i)) for i in range(len(self._requests)))

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas of choice `index`, with their texts joined. `timings` is called
        once, at the end."""
        last = deltas[-1]
        self._counts[index] = (last.prompt_tokens, last.completion_tokens)
        text = "".join([delta.text for delta in deltas])
        if last.finish_reason is None:
            return self._text(index, text) if text else b""
        chunks = [self._chunk([_choice(index, text, last.finish_reason)])]
        self._open -= 1
        if self._open == 0:
            if self._with_usage:
                chunks.append({**self._chunk([]), "usage": self._usage()})
            chunks[-1] |= {"timings": dict(timings()), **self._last}
        return b"".join(map(event, chunks))

    def _text(self, index: int, text: str) -> bytes:
        return event(self._chunk([_choice(index, text, None)]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "choices": choices}
        if not self._with_usage:
            return chunk
        return {**chunk, "usage": self._usage() if self._in_every_chunk else None}

    def _echo(self, index: int) -> str:
        prompt = self._requests[index].prompt
        return prompt if self._is_echoed and isinstance(prompt, str) else ""

    def _usage(self) -> dict[str, int]:
        """Each prompt is counted once, whatever the number of its choices."""
        prompts = sum(prompt for prompt, _ in self._counts[:: self._per_prompt])
        completion = sum(completion for _, completion in self._counts)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completion,
            "total_tokens": prompts + completion,
        }


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
