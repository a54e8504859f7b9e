"""Tokens that were read go to their jobs: deltas, ends of answers, rows whose values are broken."""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass

from predictors.chat.request import ChatDelta, ScoredDelta, TokenLogprob
from predictors.chat.sampling import NOT_FINITE
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenDelivery:
    """Of one engine. `leave` evicts a job; `fail` ends a sequence whose logits are not finite.
    Engine thread only."""

    metrics: ChatMetrics
    leave: Callable[[ChatJob], None]
    fail: Callable[[Sequence], None]

    def deliver(
        self,
        sequences: abc.Sequence[Sequence],
        tokens: abc.Sequence[int],
        scores: abc.Mapping[Sequence, TokenLogprob],
    ) -> None:
        """Emit the tokens that were read, with the scores of those that have them, and let finished
        sequences leave. Tokens launched for a sequence after its last one, or after it was evicted,
        are dropped."""
        live = [(s, t) for s, t in zip(sequences, tokens, strict=True) if not s.is_gone]
        if not live:
            return
        now = live[0][0].job.clock()  # of the whole step
        earlier: dict[float, int] = {}
        for sequence, token in live:
            if token == NOT_FINITE:
                self.fail(sequence)
                continue
            if sequence.constraint is not None and not self._takes(sequence, token):
                continue
            if sequence.answer:
                before = sequence.last_token_at
                earlier[before] = earlier.get(before, 0) + 1
            else:
                self.metrics.observe_first(sequence, now)
            sequence.last_token_at = now
            self._extend(sequence, token, scores.get(sequence))
        self.metrics.observe_tokens(earlier, now)

    def _takes(self, sequence: Sequence, token: int) -> bool:
        """Its grammar has taken the token; else the sequence ends without it, alone."""
        assert sequence.constraint is not None
        reason = sequence.constraint.take(len(sequence.answer), token)
        if reason is None:
            return True
        log.warning("job %s: %s", sequence.job.id, reason.message)
        self.leave(sequence.job)
        sequence.job.fail(reason)
        return False

    def _extend(self, sequence: Sequence, token: int, score: TokenLogprob | None) -> None:
        job = sequence.job
        sequence.answer.append(token)
        made = len(sequence.answer)
        reason = "length" if made >= job.work.max_tokens else None
        if token in sequence.end_tokens:
            reason = "stop"
        if reason is None and score is None:
            job.emit(ChatDelta((token,), sequence.total, made))
            return
        if reason is not None:
            self.metrics.observe_end(sequence)
        job.emit(_delta(sequence, token, reason, score))
        if reason is not None:
            self.leave(job)
            job.finish()


def _delta(
    sequence: Sequence, token: int, reason: str | None, score: TokenLogprob | None
) -> ChatDelta:
    counts = (token,), sequence.total, len(sequence.answer)
    if score is None:
        return ChatDelta(*counts, finish_reason=reason)
    return ScoredDelta(*counts, finish_reason=reason, scores=(score,))
