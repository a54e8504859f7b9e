"""Plans the engine's steps: which sequences decode, which prompts are read, which jobs are charged.

With one caller all sequences decode that can, and prompts are read in order of admission; where
prompts share a pass and jobs wait for slots, a few prompts wait for more. With several, rows go to
the callers that have used least, and prompts wait while a caller that has used less decodes.
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
    CHEAP_ROWS,
    PromptChunk,
    PromptWait,
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
"""Most tokens of new pictures in one packed step, unless the first picture has more: several small
pictures share a step."""
PICTURE_WEIGHT = 2
"""Prompt tokens that take about as long to read as one token of a picture to encode."""
PACKED_WAIT_STEPS = 8
"""Least steps between packed passes over prompts that may wait. A pass over eight prompts takes
about as long as over one."""
ROUNDING_S = 1e-9
BUSY = 0.75
"""Least share of the slots that decode while a caller's prompts wait for more prompts."""


@dataclass(slots=True)
class LaunchedStep:
    """A step on the device, whose tokens are on their way to the host."""

    chunks: list[PromptChunk[Sequence]]
    """The parts of prompts that it reads."""
    sequences: list[Sequence]
    """The sequences that get a token: first those that decode, then those whose prompt ends."""
    num_rows: int
    """How many of `sequences` decode."""
    copy: HostCopy
    """The tokens, one per sequence."""
    started_at: float
    """Seconds of `time.perf_counter`."""
    scores: Mapping[Sequence, RowScores] = field(default_factory=dict)
    """Scores of the sequences that asked for logprobs. They reach the host before the tokens."""
    constrained: abc.Sequence[Sequence] = ()
    """The sequences under a grammar."""
    _tokens: list[int] | None = None
    _has_advanced: bool = False

    @property
    def is_abandoned(self) -> bool:
        """True if all of its sequences were evicted: its tokens need not be read."""
        return bool(self.sequences) and all(each.is_evicted for each in self.sequences)

    def read(self) -> list[int]:
        """The tokens, one per sequence. The first call waits for them."""
        if self._tokens is None:
            self._tokens = self.copy.result().tolist()
        return self._tokens

    def advance_grammars(self) -> None:
        """Give the tokens of `read` to the sequences' grammars. Later calls do nothing."""
        if not self.constrained or self._has_advanced:
            return
        tokens = dict(zip(self.sequences, self.read(), strict=True))
        self._has_advanced = True
        for sequence in self.constrained:
            if sequence.constraint is not None and not sequence.is_evicted:
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
    """Plans an engine's steps, in which at most `slots` sequences decode. Engine thread only."""

    slots: int
    pictures: PictureCache
    holders: SlotHolders = field(default_factory=SlotHolders)
    costs: StepCosts = field(default_factory=StepCosts)
    _budget: StepBudget | None = None
    _bound: PassBound | None = None
    """Bound on the prompts of the step that is being planned."""
    _wait: PromptWait = field(default_factory=PromptWait)
    _least_steps: int = 0
    _done_at: float = 0.0
    """When the last step was charged, in seconds of `time.perf_counter`."""
    _number: int = 0
    """Launched steps so far."""

    def set_budget(self, budget: StepBudget | None) -> None:
        """Plan packed steps within `budget` from now on, and start the costs from its times. None:
        no bound, and costs start from nothing. Between steps."""
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
        self._least_steps = PACKED_WAIT_STEPS if is_packed else 0
        decoding, reading, out_of_pages = _by_phase(sequences)
        if out_of_pages:
            paging.provide(out_of_pages)
            decoding, reading, _ = _by_phase(sequences)
        ranks = self.holders.ranks() if self.holders.is_shared else {}
        if (num_rows := self._num_rows(decoding, ranks)) < len(decoding):
            decoding = self._choose_rows(decoding, num_rows)
        self._bound = None
        if self._budget is not None and is_packed and decoding:
            self._bound = self._budget.beside(len(decoding))
        others: list[Sequence] = []
        share = 1.0
        if reading and ranks:
            reading, others, share = self._prompts_in_turn(reading, decoding, ranks)
        elif reading and self._may_wait(reading, decoding):
            reading = []
        if not reading:
            return StepPlan(tuple(decoding), ())
        for sequence in (*reading, *others):
            if not sequence.is_begun and sequence.names:
                _reuse_prefix(sequence, paging.pool)
        first = [self._progress(sequence) for sequence in reading]
        more = [self._progress(sequence) for sequence in others]
        if is_packed:
            prompts = plan_packed(first, widths, PICTURE_TOKENS, more, share, self._bound)
        else:
            prompts = plan_single(first, widths, more, share)
        return StepPlan(tuple(decoding), prompts.prefill)

    def _progress(self, sequence: Sequence) -> SequenceProgress[Sequence]:
        new = self.pictures.missing(sequence)
        return SequenceProgress(sequence, sequence.num_prefilled, sequence.to_prefill, new)

    # -- turns -----------------------------------------------------------------------------------
    def _num_rows(self, decoding: abc.Sequence[Sequence], ranks: abc.Mapping[str, int]) -> int:
        """Rows of the next step. With several callers (`ranks`) it takes no longer than the rows of
        the first caller alone would on its share of the device."""
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

    def _choose_rows(self, decoding: abc.Sequence[Sequence], num_rows: int) -> list[Sequence]:
        """`num_rows` of the sequences: rows go to the callers that have used least, and each
        caller's sequences take turns."""
        by_caller: dict[str, list[Sequence]] = {}
        for sequence in decoding:
            by_caller.setdefault(sequence.job.account.name, []).append(sequence)
        wanted = {name: len(line) for name, line in by_caller.items()}
        row_s = self.costs.decode_s(num_rows) / num_rows
        places = self.holders.deal(wanted, num_rows, row_s)
        chosen: set[Sequence] = set()
        for name, line in by_caller.items():
            chosen.update(sorted(line, key=_last_decode_step)[: places[name]])
        return [sequence for sequence in decoding if sequence in chosen]

    def _prompts_in_turn(
        self,
        reading: abc.Sequence[Sequence],
        decoding: abc.Sequence[Sequence],
        ranks: abc.Mapping[str, int],
    ) -> tuple[list[Sequence], list[Sequence], float]:
        """The prompts to read, the prompts of other callers that may be read beside them, and the
        first caller's share of the device. Empty lists while prompts must wait."""
        by_turn = sorted(reading, key=lambda s: ranks[s.job.account.name])
        account: Account = by_turn[0].job.account
        own = [s for s in by_turn if s.job.account.name == account.name]
        rank = ranks[account.name]
        if any(ranks[s.job.account.name] < rank for s in decoding):
            is_over = self._wait.is_over or (
                self._bound is not None and self._wait.has_decoded and self._fills_pass(own)
            )
            return (by_turn if is_over else []), [], 1.0
        if self._may_wait(own, decoding):
            return [], [], 1.0
        return own, by_turn[len(own) :], self.holders.share(account)

    def _may_wait(self, prompts: abc.Sequence[Sequence], decoding: abc.Sequence[Sequence]) -> bool:
        """True if a caller's prompts should wait for more of them: it has jobs that wait for slots,
        most slots decode meanwhile, and the prompts do not fill a pass."""
        if self._wait.is_over or not self._least_steps or not prompts[0].job.account.waiting:
            return False
        is_busy = len(decoding) >= BUSY * self.slots
        return is_busy and not self._fills_pass(prompts)

    def _fills_pass(self, prompts: abc.Iterable[Sequence]) -> bool:
        """True if these prompts gain nothing by waiting for more: they have as many rows as cost
        little, or one of them was cut by a bound and goes on."""
        bound, left = self._bound, [s.to_prefill - s.num_prefilled for s in prompts]
        if bound is None:
            return sum(left) >= CHEAP_ROWS
        return any(s.is_begun for s in prompts) or sum(left) >= min(CHEAP_ROWS, bound.rows)

    # -- charging steps --------------------------------------------------------------------------
    def note_launched(self, step: LaunchedStep) -> None:
        """Note a launched step: its sequences have had their turn, and further prompts wait."""
        self._number += 1
        for sequence in step.sequences[: step.num_rows]:
            sequence.last_decode_step = self._number
        if step.num_rows:
            self._wait.note_decoding(self.costs.decode_s(step.num_rows))
        if step.chunks:
            share = self.holders.share(step.chunks[0].key.job.account)
            tokens = sum(chunk.length for chunk in step.chunks)
            _, prompt_s = self.costs.expected(0, self._units(step, tokens))
            self._wait.start(prompt_s * (1 - share) / share, self._least_steps)

    def skip_until(self, now: float) -> None:
        """The engine did other work until `now` (`time.perf_counter`): charge it to no job."""
        self._done_at = now

    def charge_finished(self, step: LaunchedStep, now: float) -> None:
        """Charge the seconds of a step whose tokens were read at `now` (`time.perf_counter`)."""
        holders, seconds = self.holders, now - max(self._done_at, step.started_at)
        self._done_at = now
        weights = [chunk.length + PICTURE_WEIGHT * chunk.picture_tokens for chunk in step.chunks]
        tokens = sum(weights)
        units = self._units(step, tokens)
        decode_s, prompt_s = self.costs.split(step.num_rows, units, seconds)
        if step.num_rows:
            row_s = decode_s / step.num_rows
            decoded = step.sequences[: step.num_rows]
            holders.charge_each((sequence.job for sequence in decoded), row_s)
        for chunk, weight in zip(step.chunks, weights, strict=True):
            holders.charge(chunk.key.job, prompt_s * weight / tokens)
        holders.end_step(seconds)

    def _units(self, step: LaunchedStep, tokens: int) -> float:
        """The prompts of a step in units of `StepCosts`: `tokens`, or with a budget the measured
        seconds that they add."""
        if self._budget is None or not step.chunks:
            return tokens
        rows = sum(aligned(chunk.length) for chunk in step.chunks)
        pictures = sum(chunk.picture_tokens for chunk in step.chunks)
        return self._budget.prompt_s(rows, pictures, step.num_rows)


def _by_phase(
    sequences: abc.Iterable[Sequence],
) -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
    """Sequences that decode, those whose prompts are read, and those without a page for their next
    token. A sequence whose last token was launched is in none of them."""
    decoding: list[Sequence] = []
    reading: list[Sequence] = []
    out_of_pages: list[Sequence] = []
    for sequence in sequences:
        if sequence.num_prefilled < sequence.to_prefill:
            reading.append(sequence)
        elif sequence.num_launched < sequence.answer_room:
            decoding.append(sequence)
        elif not sequence.is_fully_launched:
            out_of_pages.append(sequence)
    return decoding, reading, out_of_pages


def _last_decode_step(sequence: Sequence) -> int:
    return sequence.last_decode_step


def _reuse_prefix(sequence: Sequence, pool: PagePool) -> None:
    """Skip the pages of the prompt that other sequences have filled by now. May be repeated, since
    nothing of this prompt is launched yet."""
    sequence.num_shared = pool.share(sequence.job, sequence.names, sequence.num_shared)
    sequence.pages = pool.owned(sequence.job)
    sequence.num_prefilled = sequence.num_shared * pool.page_tokens
