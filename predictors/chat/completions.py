"""Answers of `POST /v1/completions`, whole and as events. Choices are numbered over all prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictors.chat.chunks import ChatAnswer, Completion, shown_adapters, slowest
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    TokenLogprob,
    cached_tokens_of,
    scores_of,
)
from predictors.protocol.call import Call
from predictors.protocol.openai.completions_body import CompletionsBody
from predictors.protocol.openai.events import event


class CompletionsEncoder:
    """Encodes the answers to one body."""

    opens_at_once = False

    def __init__(
        self,
        body: CompletionsBody,
        call: Call,
        precision: str,
        requests: Sequence[ChatRequest],
        writers: LogprobWriters | None = None,
    ) -> None:
        self._requests = requests
        as_ids = body.chat.tokens.return_tokens_as_token_ids
        self._logprobs = None if writers is None else writers.of(requests[0], as_ids=as_ids)
        self._offsets = [0] * len(requests)  # of the next token in the text
        self._cached: dict[int, int] = {}  # tokens, by choice
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
        choices = []
        for i, each in enumerate(completions):
            self._note_cached(i, each.cached_tokens)
            scores = self._scored(i, each.scores)
            choices.append(_choice(i, self._echo(i) + each.text, each.finish_reason, scores))
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
        scores = None
        if self._logprobs is not None:
            scores = self._scored(index, [each for delta in deltas for each in scores_of(delta)])
        if last.finish_reason is None:
            return self._text(index, text, scores) if text or scores else b""
        self._note_cached(index, cached_tokens_of(last))
        chunks = [self._chunk([_choice(index, text, last.finish_reason, scores)])]
        self._open -= 1
        if self._open == 0:
            if self._with_usage:
                chunks.append({**self._chunk([]), "usage": self._usage()})
            chunks[-1] |= {"timings": dict(timings()), **self._last}
        return b"".join(map(event, chunks))

    def _text(self, index: int, text: str, scores: object = None) -> bytes:
        return event(self._chunk([_choice(index, text, None, scores)]))

    def _scored(self, index: int, scores: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """OpenAI's older form of logprobs: a list for each property of the tokens."""
        if self._logprobs is None or not scores:
            return None
        found = self._logprobs.content(scores)
        offsets = []
        for each in found:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(each["token"])
        return {
            "text_offset": offsets,
            "tokens": [each["token"] for each in found],
            "token_logprobs": [each["logprob"] for each in found],
            "top_logprobs": [
                {x["token"]: x["logprob"] for x in (*each["top_logprobs"], each)} for each in found
            ],
        }

    def _note_cached(self, index: int, tokens: int | None) -> None:
        if tokens is not None and index % self._per_prompt == 0:
            self._cached[index] = tokens

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "choices": choices}
        if not self._with_usage:
            return chunk
        return {**chunk, "usage": self._usage() if self._in_every_chunk else None}

    def _echo(self, index: int) -> str:
        prompt = self._requests[index].raw_prompt
        return prompt if self._is_echoed and isinstance(prompt, str) else ""

    def _usage(self) -> dict[str, Any]:
        """Each prompt is counted once, whatever the number of its choices."""
        prompts = sum(prompt for prompt, _ in self._counts[:: self._per_prompt])
        completion = sum(completion for _, completion in self._counts)
        found: dict[str, Any] = {
            "prompt_tokens": prompts,
            "completion_tokens": completion,
            "total_tokens": prompts + completion,
        }
        if self._cached:
            found["prompt_tokens_details"] = {"cached_tokens": sum(self._cached.values())}
        return found


def _choice(index: int, text: str, reason: str | None, scores: object) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}
