"""Scores of tokens as OpenAI's `logprobs`, for chat and V2 alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import orjson

from predictors.chat.detokenize import Vocabulary
from predictors.chat.request import ChatRequest, TokenLogprob

LEAST = -9999.0  # as OpenAI and vLLM: JSON has no infinity
SCORES_PER_PIECE = 256
"""The encoder holds the interpreter's lock: a millisecond or two for so many scores."""

Spelled = tuple[str, list[int] | None]


class LogprobWriter:
    """Writes scores. `keep_special`: the answers' texts show control tokens. `as_ids`: tokens are
    written `token_id:42`, as vLLM does on demand. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, *, keep_special: bool, as_ids: bool) -> None:
        self._vocabulary = vocabulary
        self._bytes_of = vocabulary.written if keep_special else vocabulary.bytes_of
        self._as_ids = as_ids
        self._spell: Callable[[int], Spelled] = lru_cache(2**16)(self._spelled)

    def content(self, scores: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """One object per token of the answer."""
        return [
            {
                **self._entry(score.token, score.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in score.top],
            }
            for score in scores
        ]

    def whole(self, scores: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`logprobs` of a choice, its list as finished JSON: of a long answer it has megabytes,
        which are encoded in pieces. Not for the event loop."""
        starts = range(0, len(scores), SCORES_PER_PIECE)
        pieces = (scores[first : first + SCORES_PER_PIECE] for first in starts)
        written = b",".join(orjson.dumps(self.content(piece))[1:-1] for piece in pieces)
        return {"content": orjson.Fragment(b"[%b]" % written), "refusal": None}

    def part(self, scores: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`logprobs` of a chunk."""
        return {"content": self.content(scores), "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        written, raw = self._spell(token)
        return {"token": written, "logprob": max(logprob, LEAST), "bytes": raw}

    def _spelled(self, token: int) -> Spelled:
        """The token as OpenAI writes it, bytes that are no whole character as `\\xf0`; and its
        bytes, None where the text has none of it."""
        raw = self._bytes_of(token)
        shown = self._vocabulary.written(token).decode("utf-8", "backslashreplace")
        if self._as_ids:
            shown = f"token_id:{token}"
        return shown, list(raw) or None


class LogprobWriters:
    """The writers of one model. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary_size = vocabulary.size
        self._writers = {
            (keeps, as_ids): LogprobWriter(vocabulary, keep_special=keeps, as_ids=as_ids)
            for keeps in (False, True)
            for as_ids in (False, True)
        }

    def of(self, request: ChatRequest, *, as_ids: bool) -> LogprobWriter:
        """The writer of answers to `request`."""
        return self._writers[request.text.keep_special, as_ids]
