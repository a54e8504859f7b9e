"""Gives tokens that have reached the host to their jobs, ends answers, fails broken sequences."""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass

from predictors.chat.request import ChatDelta, ScoredDelta, TokenLogprob
from predictors.chat.sampling import NOT_FINITE
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence
from predictors.serving.job import emit_all

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenDelivery:
    """Delivers the tokens of one engine. `fail` ends a sequence whose logits are not finite. Engine
    thread only."""

    metrics: ChatMetrics
    evict: Callable[[ChatJob], None]
    fail: Callable[[Sequence], None]

    def deliver(
        self,
        sequences: abc.Sequence[Sequence],
        tokens: abc.Sequence[int],
        scores: abc.Mapping[Sequence, TokenLogprob],
    ) -> None:
        """Emit `tokens`, one per sequence, with their scores, and evict finished sequences. Tokens
        that were launched for a sequence beyond its last one are dropped."""
        if not sequences:
            return
        now = sequences[0].job.clock()  # one time for all tokens of the step
        earlier: dict[float, int] = {}
        deltas: list[tuple[ChatJob, ChatDelta]] = []
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence.is_evicted:
                continue
            if token == NOT_FINITE:
                self.fail(sequence)
                continue
            if sequence.constraint is not None and not self._grammar_takes(sequence, token):
                continue
            job, answer = sequence.job, sequence.answer
            if answer:
                before = sequence.last_token_at
                earlier[before] = earlier.get(before, 0) + 1
            else:
                self.metrics.observe_first(sequence, now)
            sequence.last_token_at = now
            answer.append(token)
            made = len(answer)
            if made >= job.work.max_tokens or token in sequence.end_tokens:
                self._end(sequence, token, scores.get(sequence))
            elif (score := scores.get(sequence)) is not None:
                deltas.append((job, _delta(sequence, token, None, score)))
            else:
                deltas.append((job, ChatDelta((token,), sequence.num_prompt_tokens, made)))
        emit_all(deltas)
        self.metrics.observe_tokens(earlier, now)

    def _grammar_takes(self, sequence: Sequence, token: int) -> bool:
        """Give the token to the sequence's grammar. False if it is not allowed: the job has failed
        then."""
        assert sequence.constraint is not None
        reason = sequence.constraint.take(len(sequence.answer), token)
        if reason is None:
            return True
        log.warning("job %s: %s", sequence.job.id, reason.message)
        self.evict(sequence.job)
        sequence.job.fail(reason)
        return False

    def _end(self, sequence: Sequence, token: int, score: TokenLogprob | None) -> None:
        """End the answer with its newest token."""
        job, reason = sequence.job, "stop" if token in sequence.end_tokens else "length"
        self.metrics.observe_end(sequence)
        job.emit(_delta(sequence, token, reason, score))
        self.evict(job)
        job.finish()


def _delta(
    sequence: Sequence, token: int, reason: str | None, score: TokenLogprob | None
) -> ChatDelta:
    prompt, made = sequence.num_prompt_tokens, len(sequence.answer)
    if score is None:
        return ChatDelta((token,), prompt, made, finish_reason=reason)
    return ScoredDelta((token,), prompt, made, finish_reason=reason, scores=(score,))
