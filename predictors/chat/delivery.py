"""Tokens that were read go to their jobs: deltas, ends of answers, rows whose values are broken."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass

from predictors.chat.request import ChatDelta
from predictors.chat.sampling import NOT_FINITE
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence


@dataclass(frozen=True, slots=True)
class TokenDelivery:
    """Of one engine. `leave` evicts a job; `fail` ends a sequence whose logits are not finite.
    Engine thread only."""

    metrics: ChatMetrics
    leave: Callable[[ChatJob], None]
    fail: Callable[[Sequence], None]

    def deliver(self, sequences: abc.Sequence[Sequence], tokens: abc.Sequence[int]) -> None:
        """Emit the tokens that were read, and let finished sequences leave. Tokens launched for a
        sequence after its last one, or after it was evicted, are dropped."""
        count = 0
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence.is_gone:
                continue
            if token == NOT_FINITE:
                self.fail(sequence)
                continue
            self._extend(sequence, token)
            count += 1
        self.metrics.add_tokens(count)

    def _extend(self, sequence: Sequence, token: int) -> None:
        job = sequence.job
        sequence.answer.append(token)
        self.metrics.observe_token(sequence, job.clock())
        made = len(sequence.answer)
        reason = "length" if made >= job.work.max_tokens else None
        if token in sequence.end_tokens:
            reason = "stop"
        if reason is None:
            job.emit(ChatDelta((token,), sequence.total, made))
            return
        self.metrics.observe_end(sequence)
        job.emit(ChatDelta((token,), sequence.total, made, finish_reason=reason))
        self.leave(job)
        job.finish()
