"""Reads answers of which the caller wants to know, or to change, what single tokens show: with
logprobs, stop tokens, a least length, or text that is usually left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from predictors.chat.detokenize import NO_REUSE, AnswerReader, StopFinder, Vocabulary
from predictors.chat.request import (
    ChatDelta,
    LastDelta,
    PromptReuse,
    PromptSize,
    ScoredDelta,
    TextOptions,
    TokenLogprob,
    scores_of,
)


class TrackedReader(AnswerReader):
    """An `AnswerReader` that follows which text each token made.

    Scores are passed on with the first text of their token, so that they are held back as long as
    it is. Those of tokens that a stop string cut off, and of the token that ended the answer, are
    dropped with the text, unless `options` show it. Text of the first `min_tokens` tokens is no
    part of a stop string, as in vLLM.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        observe: Callable[[float], None] = lambda _: None,
        pictures: tuple[PromptSize, ...] = (),
        reuse: PromptReuse = NO_REUSE,
        *,
        options: TextOptions,
        min_tokens: int = 0,
    ) -> None:
        super().__init__(vocabulary, stops, observe, pictures, reuse)
        if options.keep_special:
            self._bytes_of = vocabulary.written
        self._stops = StopFinder(stops, is_shown=options.include_stop)
        self._shows_end = options.include_stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._made = 0
        """Characters of all tokens so far."""
        self._shown = 0
        """Characters that were passed on."""
        self._pending: deque[tuple[int, bool, TokenLogprob]] = deque()
        """Scores that were not passed on: the index of the token's first character, and whether it
        has any."""

    def feed(self, chunk: ChatDelta) -> list[ChatDelta]:
        """The delta with its text and scores; nothing while there are none to pass on."""
        started = time.perf_counter()
        tokens, scores, text = chunk.tokens, scores_of(chunk), ""
        for i, token in enumerate(tokens):
            ends = chunk.finish_reason == "stop" and i == len(tokens) - 1
            if ends and not self._shows_end:
                break
            text += self._take(token, scores[i] if scores else None)
            if self._stops.found:
                break
        self._shown += len(text)
        reason = "stop" if self._stops.found else chunk.finish_reason
        if reason is not None:
            rest = self._stops.flush()
            self._shown += len(rest)
            text += rest
        known = self._release(is_whole=reason is not None and not self._stops.found)
        self._seconds += time.perf_counter() - started
        self._unsent += tokens
        if reason is not None:
            self._observe(self._seconds)
        elif not text and not known:
            return []
        return [self._delta(chunk, text, reason, known)]

    def _take(self, token: int, score: TokenLogprob | None) -> str:
        """The text that can be passed on after one more token."""
        raw = self._bytes_of(token)
        if score is not None:
            self._pending.append((self._made, bool(raw), score))
        piece = self._decoder.decode(raw)
        self._made += len(piece)
        self._num_tokens += 1
        return piece if self._num_tokens <= self._min_tokens else self._stops.feed(piece)

    def _release(self, *, is_whole: bool) -> tuple[TokenLogprob, ...]:
        """The scores of the text that was passed on; all of them once the answer `is_whole`."""
        found = []
        while self._pending:
            first, has_text, score = self._pending[0]
            if not is_whole and (first >= self._shown if has_text else first > self._shown):
                break
            found.append(score)
            self._pending.popleft()
        return tuple(found)

    def _delta(
        self, chunk: ChatDelta, text: str, reason: str | None, known: tuple[TokenLogprob, ...]
    ) -> ChatDelta:
        sent, self._unsent = self._unsent, ()
        prompt, made = chunk.prompt_tokens, chunk.completion_tokens
        if reason is not None:
            return LastDelta(
                sent, prompt, made, text, reason, self._pictures, known,
                cached_tokens=self._reuse.cached_tokens, stop_text=self._stops.match,
            )  # fmt: skip
        if known:
            return ScoredDelta(sent, prompt, made, text, None, known)
        return ChatDelta(sent, prompt, made, text)
