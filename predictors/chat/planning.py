"""Plans the engine's steps: whose sequences decode, whose prompts are read, and who pays for it.

With one caller all that can decode do, and prompts are read in order of admission; where jobs wait
for slots and prompts share a pass, a few prompts wait for more. Beside others the rows of a step
are dealt by callers' turns, as many as the first one's share of the device allows, and a caller's
prompts wait while another decodes who has used less, until decoding has taken as long as the last
pass over prompts did. Engine thread only.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from predictors.chat.kv_cache import PagePool
from predictors.chat.limits import aligned
from predictors.chat.paging import Paging
from predictors.chat.request import TokenLogprob
from predictors.chat.scheduling import (
    GUEST_ROWS,
    PromptChunk,
    PromptHold,
    SequenceProgress,
    StepCosts,
    StepPlan,
    plan_packed,
    plan_single,
)
from predictors.chat.scores import RowScores
from predictors.chat.sequence import Sequence
from predictors.chat.step_budget import PassBound, StepBudget
from predictors.chat.vision.pictures import PictureCache
from predictors.compute.device.placement import HostCopy
from predictors.serving.accounts import Account
from predictors.serving.turns import SlotHolders

PICTURE_TOKENS = 512
"""Most tokens of new pictures in one packed step, unless the first picture has more. Small pictures
share a pass this way."""
PICTURE_WEIGHT = 2
"""Encoding a picture's token takes about as long as reading so many tokens."""
PACKED_HOLD_STEPS = 8
"""Least steps between passes over prompts that may wait. Where prompts share a pass, one over eight
of them takes about as long as one over the first."""
ROUNDING_S = 1e-9
BUSY = 0.75
"""Share of a step's rows that decode while a caller's prompts wait for more of them."""


@dataclass(slots=True)
class LaunchedStep:
    """The sequences that get a token, first those that decode, the prompt chunks read, and the
    tokens' host copy."""

    chunks: list[PromptChunk[Sequence]]
    sequences: list[Sequence]
    num_rows: int
    """Sequences that decode."""
    copy: HostCopy
    started_at: float
    """Seconds of `time.perf_counter`."""
    scores: Mapping[Sequence, RowScores] = field(default_factory=dict)
    """Of sequences that asked for logprobs: on their way to the host, ahead of the tokens."""
    constrained: abc.Sequence[Sequence] = ()
    """Those under a grammar."""
    _tokens: list[int] | None = None
    _is_taken: bool = False

    def read(self) -> list[int]:
        """The tokens, one per sequence. The first call waits for them."""
        if self._tokens is None:
            self._tokens = self.copy.result().tolist()
        return self._tokens

    def take(self) -> None:
        """Have grammars take the tokens that `read` gives, once."""
        if not self.constrained or self._is_taken:
            return
        tokens = dict(zip(self.sequences, self.read(), strict=True))
        self._is_taken = True
        for sequence in self.constrained:
            if sequence.constraint is not None and not sequence.is_gone:
                sequence.constraint.take(len(sequence.answer), tokens[sequence])

    def read_scores(self) -> dict[Sequence, TokenLogprob]:
        """The scores of the tokens that `read` gave."""
        if not self.scores:
            return {}
        tokens = dict(zip(self.sequences, self.read(), strict=True))
        return {
            sequence: scores.read(tokens[sequence], sequence.work.controls.logprobs or 0)
            for sequence, scores in self.scores.items()
        }


@dataclass(slots=True)
class StepPlanner:
    """The turns of one engine's callers. `slots` sequences decode in a step at most."""

    slots: int
    pictures: PictureCache
    holders: SlotHolders = field(default_factory=SlotHolders)
    costs: StepCosts = field(default_factory=StepCosts)
    _budget: StepBudget | None = None
    _bound: PassBound | None = None
    """Of the step that is planned."""
    _hold: PromptHold = field(default_factory=PromptHold)
    _least_steps: int = 0
    _done_at: float = 0.0
    _number: int = 0

    def keep_to(self, budget: StepBudget | None) -> None:
        """Plan packed steps within `budget` from now on, and learn costs from its times. None: no
        bound, and costs are learned from nothing. Between steps."""
        self._budget = budget
        self.costs = StepCosts(None if budget is None else budget.times)

    def describe(self) -> dict[str, object] | None:
        """The budget, or None without one. Any thread."""
        return None if self._budget is None else self._budget.describe()

    def plan(
        self,
        sequences: abc.Sequence[Sequence],
        paging: Paging,
        widths: abc.Sequence[int],
        *,
        is_packed: bool,
    ) -> StepPlan[Sequence]:
        """The next step of `sequences`, given in order of admission. Those that need pages get
        them, or wait."""
        self._least_steps = PACKED_HOLD_STEPS if is_packed else 0
        decoding, reading, short = _sorted(sequences)
        if short:
            paging.provide(short)
            decoding, reading, _ = _sorted(sequences)
        ranks = self.holders.ranks() if self.holders.is_shared else {}
        if (num_rows := self._num_rows(decoding, ranks)) < len(decoding):
            decoding = self._dealt(decoding, num_rows)
        self._bound = None
        if self._budget is not None and is_packed and decoding:
            self._bound = self._budget.beside(len(decoding))
        guests: list[Sequence] = []
        share = 1.0
        if reading and ranks:
            reading, guests, share = self._in_turn(reading, decoding, ranks)
        elif reading and self._may_wait(reading, decoding):
            reading = []
        if not reading:
            return StepPlan(tuple(decoding), ())
        for sequence in (*reading, *guests):
            if not sequence.is_begun and sequence.names:
                _reuse_prefix(sequence, paging.pool)
        found = [self._progress(sequence) for sequence in reading]
        more = [self._progress(sequence) for sequence in guests]
        if is_packed:
            prompts = plan_packed(found, widths, PICTURE_TOKENS, more, share, self._bound)
        else:
            prompts = plan_single(found, widths, more, share)
        return StepPlan(tuple(decoding), prompts.prefill)

    def _progress(self, sequence: Sequence) -> SequenceProgress[Sequence]:
        new = self.pictures.missing(sequence)
        return SequenceProgress(sequence, sequence.done, sequence.to_read, new)

    # -- turns -----------------------------------------------------------------------------------
    def _num_rows(self, decoding: abc.Sequence[Sequence], ranks: abc.Mapping[str, int]) -> int:
        """Rows of the next step. Beside others the step takes no longer than the rows of the caller
        whose turn it is would alone on its share of the device."""
        most = min(len(decoding), self.slots)
        if not most or not ranks:
            return most
        costs = self.costs
        first = min((s.job.account for s in decoding), key=lambda account: ranks[account.name])
        least = min(most, sum(s.job.account.name == first.name for s in decoding))
        most_s = costs.decode_s(least) / self.holders.share(first) + ROUNDING_S
        while most > least and costs.decode_s(most) > most_s:
            most -= 1
        return most

    def _dealt(self, decoding: abc.Sequence[Sequence], num_rows: int) -> list[Sequence]:
        """So many of these: rows go to the callers who have used least, and each caller's sequences
        take turns."""
        by_caller: dict[str, list[Sequence]] = {}
        for sequence in decoding:
            by_caller.setdefault(sequence.job.account.name, []).append(sequence)
        wanted = {name: len(line) for name, line in by_caller.items()}
        row_s = self.costs.decode_s(num_rows) / num_rows
        places = self.holders.deal(wanted, num_rows, row_s)
        chosen: set[Sequence] = set()
        for name, line in by_caller.items():
            chosen.update(sorted(line, key=_last_row)[: places[name]])
        return [sequence for sequence in decoding if sequence in chosen]

    def _in_turn(
        self,
        reading: abc.Sequence[Sequence],
        decoding: abc.Sequence[Sequence],
        ranks: abc.Mapping[str, int],
    ) -> tuple[list[Sequence], list[Sequence], float]:
        """The prompts to read, those that may be read beside them, and the share of the device of
        the caller whose prompts come first. No prompts while their callers must wait."""
        by_turn = sorted(reading, key=lambda s: ranks[s.job.account.name])
        account: Account = by_turn[0].job.account
        own = [s for s in by_turn if s.job.account.name == account.name]
        rank = ranks[account.name]
        if any(ranks[s.job.account.name] < rank for s in decoding):
            is_over = self._hold.is_over or (
                self._bound is not None and self._hold.has_decoded and self._fills_pass(own)
            )
            return (by_turn if is_over else []), [], 1.0
        if self._may_wait(own, decoding):
            return [], [], 1.0
        return own, by_turn[len(own) :], self.holders.share(account)

    def _may_wait(self, prompts: abc.Sequence[Sequence], decoding: abc.Sequence[Sequence]) -> bool:
        """True if a caller whose jobs wait for slots gains by reading its prompts together: most
        rows decode meanwhile, and the prompts are few."""
        if self._hold.is_over or not self._least_steps or not prompts[0].job.account.waiting:
            return False
        is_busy = len(decoding) >= BUSY * self.slots
        return is_busy and not self._fills_pass(prompts)

    def _fills_pass(self, prompts: abc.Iterable[Sequence]) -> bool:
        """True if these prompts gain nothing by waiting for more: a pass over them has all the rows
        that cost little, or goes on with one that a bound cut."""
        bound, left = self._bound, [s.to_read - s.done for s in prompts]
        if bound is None:
            return sum(left) >= GUEST_ROWS
        return any(s.is_begun for s in prompts) or sum(left) >= min(GUEST_ROWS, bound.rows())

    # -- what a step took ------------------------------------------------------------------------
    def launched(self, step: LaunchedStep) -> None:
        """The step is on the device: its sequences have had their turn."""
        self._number += 1
        for sequence in step.sequences[: step.num_rows]:
            sequence.last_row = self._number
        if step.num_rows:
            self._hold.decoded(self.costs.decode_s(step.num_rows))
        if step.chunks:
            share = self.holders.share(step.chunks[0].key.job.account)
            tokens = sum(chunk.length for chunk in step.chunks)
            _, prompt_s = self.costs.expected(0, self._units(step.chunks, tokens))
            self._hold.read(prompt_s * (1 - share) / share, self._least_steps)

    def skip_to(self, now: float) -> None:
        """The engine did other work until `now`, of `time.perf_counter`: no caller is charged."""
        self._done_at = now

    def finished(self, step: LaunchedStep, now: float) -> None:
        """The tokens of a step were read at `now`, of `time.perf_counter`: charge its seconds."""
        holders, seconds = self.holders, now - max(self._done_at, step.started_at)
        self._done_at = now
        weights = [chunk.length + PICTURE_WEIGHT * chunk.new for chunk in step.chunks]
        tokens = sum(weights)
        units = self._units(step.chunks, tokens)
        decode_s, prompt_s = self.costs.split(step.num_rows, units, seconds)
        if step.num_rows:
            row_s = decode_s / step.num_rows
            decoded = step.sequences[: step.num_rows]
            holders.charge_each((sequence.job for sequence in decoded), row_s)
        for chunk, weight in zip(step.chunks, weights, strict=True):
            holders.charge(chunk.key.job, prompt_s * weight / tokens)
        holders.end_step(seconds)

    def _units(self, chunks: abc.Sequence[PromptChunk[Sequence]], tokens: int) -> float:
        """Units of a step's prompts for `StepCosts`: these tokens, or their measured seconds."""
        if self._budget is None or not chunks:
            return tokens
        rows = sum(aligned(chunk.length) for chunk in chunks)
        return self._budget.prompt_s(rows, sum(chunk.new for chunk in chunks))


def _sorted(
    sequences: abc.Iterable[Sequence],
) -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
    """Those that decode, those that read, and those that need pages for their next token."""
    decoding: list[Sequence] = []
    reading: list[Sequence] = []
    short: list[Sequence] = []
    for sequence in sequences:
        if sequence.done < sequence.to_read:
            reading.append(sequence)
        elif sequence.launched < sequence.room:
            decoding.append(sequence)
        elif not sequence.is_launched:
            short.append(sequence)
    return decoding, reading, short


def _last_row(sequence: Sequence) -> int:
    return sequence.last_row


def _reuse_prefix(sequence: Sequence, pool: PagePool) -> None:
    """Skip the pages that other sequences have read, also since its admission. Repeating a step
    does no harm: nothing of this prompt is launched."""
    sequence.num_shared = pool.share(sequence.job, sequence.names, sequence.num_shared)
    sequence.pages = pool.owned(sequence.job)
    sequence.done = sequence.num_shared * pool.page_tokens
