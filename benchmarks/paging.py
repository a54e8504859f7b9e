"""Ways to give out the pages of the KV cache, simulated with the engine's own planner, pool and
paging over answers of unknown length: slots in use, tokens per second, tokens read again, waits.

`python -m benchmarks.paging` prints a table. Seconds are virtual: a step takes what steps of a 3B
model on an H200 were measured to take, so no device is needed and every run gives the same numbers.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from predictors.chat.answer_lengths import AnswerLengths
from predictors.chat.kv_cache import PagePool
from predictors.chat.launching import ends_prompt
from predictors.chat.limits import EngineLimits, packed_widths
from predictors.chat.paging import Paging
from predictors.chat.planning import LaunchedStep, StepPlanner
from predictors.chat.request import Sampling
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence
from predictors.chat.vision.pictures import PictureCache
from predictors.chat.work import ChatWork
from predictors.serving.accounts import Account
from predictors.serving.job import Job

CONTEXT, PAGE, SLOTS, PROMPT = 32768, 64, 64, 1433
"""As on a GPU by default; a picture of a megapixel and 64 tokens of text."""
WIDTHS = packed_widths(1536)
STEP_S, ROW_S, TOKEN_S = 1.8e-3, 3.5e-5, 2.3e-5
"""Seconds of a decode step, of each of its rows, and of a prompt's token."""
WARMUP = 64  # answers before the counting starts

LENGTHS: dict[str, Callable[[random.Random], float]] = {
    "short": lambda r: r.lognormvariate(5.0, 0.9),  # mean 220
    "1 of 20 long": lambda r: r.uniform(4e3, 3e4) if r.random() < 0.05 else r.lognormvariate(5, 1),
    "all long": lambda r: r.lognormvariate(8.5, 0.8),  # mean 6,800
}
POOLS = (1.5, 4.0, 16.0)  # in contexts


class WorstCase(Paging):
    """All that an answer may ever need, at admission."""

    def __init__(self, *args: Any, may_preempt: bool) -> None:
        super().__init__(*args, may_preempt=False)


class PromptOnly(Paging):
    """The prompt and one token at admission, whatever the answers of others were like."""

    def admit(self, sequence: Sequence) -> bool:
        keep = self._keep(sequence.job.account)
        if self._waiting and keep:
            return False
        sequence.to_prefill = sequence.num_prompt_tokens
        return self._reserve(sequence, sequence.num_prompt_tokens + 1, keep)


class Banker(Paging):
    """Grants only what leaves an order in which all sequences can come to their ends (Dijkstra's
    banker's algorithm): none is ever preempted, and those that may not grow wait with their pages.
    """

    def admit(self, sequence: Sequence) -> bool:
        if not super().admit(sequence):
            return False
        self._sequences[sequence.job] = sequence  # type: ignore[index]
        is_safe = self._is_safe()
        del self._sequences[sequence.job]  # type: ignore[attr-defined]
        if not is_safe:
            self.pool.release(sequence.job)
        return is_safe

    def _grow(self, sequence: Sequence, oldest: Sequence) -> None:
        job, pool = sequence.job, self.pool
        if not pool.grow(job):
            return
        pages = pool.owned(job)
        before, sequence.pages = sequence.pages, pages
        if self._is_safe():
            sequence.set_pages(pages, PAGE)
        else:
            pool._owned[job] = before
            pool._drop(pages[-1])
            sequence.pages = before

    def _is_safe(self) -> bool:
        free = self.pool.num_free
        parts = sorted(
            (
                self.pool.pages_for(s.num_prompt_tokens + s.work.max_tokens) - len(s.pages),
                len(s.pages),
            )
            for s in self._sequences.values()
        )
        for need, held in parts:
            if need > free:
                return False
            free += held
        return True


SCHEMES: dict[str, type[Paging]] = {
    "worst case": WorstCase,
    "never unsafe (banker)": Banker,
    "prompt only, preempt": PromptOnly,
    "expected, preempt": Paging,
}


@dataclass
class Outcome:
    """Of one run, after its first answers."""

    seconds: float = 0.0
    tokens: int = 0
    rows: float = 0.0
    held: float = 0.0
    steps: int = 0
    read: int = 0
    lost: int = 0
    gap_s: float = 0.0

    def row(self) -> str:
        steps, speed = self.steps, self.tokens / self.seconds
        held, rows, lost = self.held / steps, self.rows / steps, self.lost / max(1, self.read)
        return f"{held:.1f} | {rows:.1f} | {speed:,.0f} | {lost:.1%} | {self.gap_s:.2f} |"


class Simulated:
    """One engine, without a device, under a queue that never empties."""

    def __init__(self, scheme: type[Paging], contexts: float, kind: str, seed: int) -> None:
        pages = int(contexts * CONTEXT) // PAGE
        limits = EngineLimits(SLOTS, PAGE, pages, CONTEXT, (SLOTS,), WIDTHS, spare_slots=32)
        self.metrics = ChatMetrics("simulated")
        self.planner = StepPlanner(SLOTS, PictureCache(0, self.metrics))
        self.pool = PagePool(pages, PAGE)
        self.sequences: dict[ChatJob, Sequence] = {}
        args = (self.pool, self.sequences, self.planner.holders, limits, self.metrics)
        self.paging = scheme(*args, may_preempt=True)
        self.lengths = AnswerLengths()
        self.random = random.Random(seed)
        self.draw = LENGTHS[kind]
        self.account = Account("one")
        self.account.waiting = 1
        self.now = 0.0
        self.ended = 0
        self.found = Outcome()
        self.last_at: dict[Sequence, float] = {}
        self.length: dict[ChatJob, int] = {}
        self.slots = deque(range(SLOTS))
        self.next = self.job()

    def job(self) -> ChatJob:
        most = CONTEXT - PROMPT
        work = ChatWork(
            torch.zeros(PROMPT, dtype=torch.int64),
            torch.zeros(3, PROMPT, dtype=torch.int64),
            PROMPT,
            (),
            Sampling(),
            0,
            max_tokens=most,
            stop=(),
            ignore_eos=False,
            expected_tokens=self.lengths.expected(most, is_open=True),
            is_open=True,
        )
        job: ChatJob = Job("simulated", work)
        job.account = self.account
        self.length[job] = max(1, min(most, int(self.draw(self.random))))
        return job

    def run(self, answers: int) -> Outcome:
        while self.ended < WARMUP + answers:
            self.admit()
            self.step()
            if self.ended < WARMUP:
                self.found = Outcome()
        return self.found

    def admit(self) -> None:
        while self.slots:
            sequence = Sequence(self.next, self.slots[0], PROMPT, frozenset())
            if not self.paging.admit(sequence):
                return
            self.slots.popleft()
            self.sequences[self.next] = sequence
            self.planner.holders.add(self.next)
            self.next = self.job()

    def step(self) -> None:
        everyone, found = list(self.sequences.values()), self.found
        lost = sum(s.num_lost for s in everyone)
        plan = self.planner.plan(everyone, self.paging, WIDTHS, is_packed=True)
        found.lost += sum(s.num_lost for s in everyone) - lost
        self.paging.put_tables(lambda *_: None)
        chunks = [chunk for each in plan.prefill for chunk in each.chunks]
        told = list(plan.decode)
        told += [c.key for c in chunks if ends_prompt(c) and not c.key.num_launched]
        num_read = sum(chunk.length for chunk in chunks)
        seconds = num_read * TOKEN_S
        if plan.decode:
            seconds += STEP_S + ROW_S * len(plan.decode)
        assert seconds, "no sequence got on"
        step = LaunchedStep(chunks, told, len(plan.decode), None, self.now)  # type: ignore[arg-type]
        self.now += seconds
        self.planner.note_launched(step)
        for chunk in chunks:
            chunk.key.is_begun, chunk.key.num_prefilled = True, chunk.start + chunk.length
        self.planner.charge_finished(step, self.now)
        found.seconds += seconds
        found.read += num_read
        found.steps += 1
        found.rows += len(plan.decode)
        found.held += len(everyone)
        for sequence in told:
            sequence.num_launched += 1
            self.tell(sequence)

    def tell(self, sequence: Sequence) -> None:
        sequence.answer.append(0)
        self.found.tokens += 1
        if (before := self.last_at.get(sequence)) is not None:
            self.found.gap_s = max(self.found.gap_s, self.now - before)
        self.last_at[sequence] = self.now
        if len(sequence.answer) < self.length[sequence.job]:
            return
        del self.sequences[sequence.job], self.last_at[sequence]
        self.slots.append(sequence.slot)
        self.planner.holders.remove(sequence.job)
        self.paging.release(sequence)
        self.lengths.observe(sequence.work.max_tokens, len(sequence.answer), is_open=True)
        self.ended += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    columns = ("answers", "pool, contexts", "pages", "in slots", "rows", "tokens/s", "read again")
    print("|", " | ".join((*columns, "longest gap, s")), "|")
    print("|---" * (len(columns) + 1) + "|")
    for kind in LENGTHS:
        for contexts in POOLS:
            for name, scheme in SCHEMES.items():
                found = Simulated(scheme, contexts, kind, args.seed).run(args.answers)
                print(f"| {kind} | {contexts:g} | {name} |", found.row(), flush=True)


if __name__ == "__main__":
    main()
