"""Which sequences have pages of the KV cache, from admission to their last token.

A sequence is admitted with pages for its prompt and the answer that is expected of it, and gets
more of them one at a time. Where none is left, the youngest sequence of the caller who holds most
is preempted: it gives its pages back, keeps its slot, and reads prompt and answer again once there
are enough pages. The oldest sequence of all is never preempted, so that one always gets on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from predictors.chat.kv_cache import PagePool
from predictors.chat.limits import EngineLimits
from predictors.chat.sequence import ChatJob, ChatMetrics, Sequence
from predictors.serving.accounts import Account
from predictors.serving.turns import SlotHolders

LEFT_PAGES = 2
"""Pages per running sequence that must be free before a preempted one gets its pages back: with
fewer it would soon have to give them up again. More gain nothing (`benchmarks.paging`)."""


class Paging:
    """The pages of one engine's `sequences`, which are in order of admission. Engine thread only,
    but for `describe`.

    Without `may_preempt` a sequence is admitted with all pages that it can ever need: what is read
    again may differ in last bits from what decoding wrote.
    """

    def __init__(
        self,
        pool: PagePool,
        sequences: Mapping[ChatJob, Sequence],
        holders: SlotHolders,
        limits: EngineLimits,
        metrics: ChatMetrics,
        *,
        may_preempt: bool,
    ) -> None:
        self.pool = pool
        self._sequences = sequences
        self._holders = holders
        self._slots = limits.slots
        self._kept = limits.kept_pages
        self._metrics = metrics
        self._may_preempt = may_preempt
        self._waiting: dict[Sequence, None] = {}  # without pages, as an ordered set
        self._grown: dict[Sequence, None] = {}  # page tables on the device are out of date

    def describe(self) -> dict[str, int]:
        """Pages, and sequences that wait for some, for operators. Any thread."""
        pool = self.pool
        return {
            "free": pool.num_free,
            "all": pool.num_pages,
            "preempted": len(self._waiting),
        }

    # -- admission and release -------------------------------------------------------------------
    def admit(self, sequence: Sequence) -> bool:
        """Give a new sequence its first pages, or return False and change nothing. While preempted
        ones wait, only a caller with less than its share gets any."""
        work = sequence.work
        keep = self._keep(sequence.job.account)
        if self._waiting and keep:
            return False
        answer = work.max_tokens
        if self._may_preempt:
            answer = min(answer, max(1, math.ceil(work.expected_tokens)))
        sequence.to_prefill = sequence.num_prompt_tokens
        return self._reserve(sequence, sequence.num_prompt_tokens + answer, keep)

    def release(self, sequence: Sequence) -> None:
        """Take all pages of a sequence that has left."""
        self.pool.release(sequence.job)
        self._waiting.pop(sequence, None)
        self._grown.pop(sequence, None)
        self._metrics.set_usage(self.pool.usage)

    # -- steps -----------------------------------------------------------------------------------
    def provide(self, out_of_pages: Iterable[Sequence]) -> None:
        """Give pages to sequences that have no place for their next token, in order of admission.
        One that gets none waits."""
        oldest = next(iter(self._sequences.values()))
        for sequence in out_of_pages:
            if sequence.pages:
                self._grow(sequence, oldest)
            elif sequence.num_launched == len(sequence.answer):  # none of its tokens is in flight
                self._restore(sequence, oldest)
        self._metrics.set_usage(self.pool.usage)

    def put_tables(self, put: Callable[[list[Sequence]], None]) -> None:
        """Call `put` with the sequences that have more pages than their page tables on the device
        say, if there are any."""
        if self._grown:
            put(list(self._grown))
            self._grown.clear()  # last: a step that raises is repeated

    def _grow(self, sequence: Sequence, oldest: Sequence) -> None:
        """Add a page; where none is free, preempt another sequence for it."""
        job, pool = sequence.job, self.pool
        keep = 0 if sequence is oldest else self._keep(job.account)
        while not pool.grow(job, keep):
            if not self._preempt_for(sequence, oldest):
                return
        sequence.set_pages(pool.owned(job), pool.page_tokens)
        self._grown[sequence] = None

    def _restore(self, sequence: Sequence, oldest: Sequence) -> None:
        """Give a preempted sequence pages for its prompt and answer, if `LEFT_PAGES` are left for
        each of the others. The oldest sequence gets them in any case."""
        wanted = sequence.num_prompt_tokens + max(1, sequence.num_launched)
        keep = 0
        if sequence is not oldest:
            keep = self._keep(sequence.job.account)
            holders = sum(bool(other.pages) for other in self._sequences.values())
            keep += LEFT_PAGES * holders
        while not self._reserve(sequence, wanted, keep):
            if sequence is not oldest or not self._preempt_for(sequence, oldest):
                return
        sequence.restart_prefill()
        del self._waiting[sequence]

    def _reserve(self, sequence: Sequence, num_tokens: int, keep: int) -> bool:
        pool = self.pool
        pages = pool.reserve(sequence.job, num_tokens, sequence.names, keep)
        if pages is None:
            return False
        sequence.set_pages(pages, pool.page_tokens)
        self._metrics.set_usage(pool.usage)
        return True

    def _keep(self, account: Account) -> int:
        """Pages that a caller must leave free: none if it has less than its share, else those that
        are kept for such callers and for newcomers."""
        holders = self._holders
        is_below = holders.is_below_share(account, self._slots)
        return 0 if is_below and (holders.is_shared or not holders.held(account)) else self._kept

    # -- preemption ------------------------------------------------------------------------------
    def _preempt_for(self, sequence: Sequence, oldest: Sequence) -> bool:
        """Preempt a sequence for the sake of `sequence`. False if `sequence` itself would be the
        victim, or there is none: it then waits, and keeps its pages."""
        victim = self._victim(oldest)
        if victim is None or victim is sequence:
            return False
        self.pool.release(victim.job)
        self._grown.pop(victim, None)
        self._waiting[victim] = None
        self._metrics.observe_preemption(victim.lose_pages())
        return True

    def _victim(self, oldest: Sequence) -> Sequence | None:
        """The youngest sequence of the caller that holds most pages for its weight. Never the
        oldest of all, nor one whose last token was launched."""
        held: dict[str, float] = {}
        youngest: dict[str, Sequence] = {}
        for sequence in self._sequences.values():
            if not sequence.pages:
                continue
            account = sequence.job.account
            pages = len(sequence.pages) / account.weight
            held[account.name] = held.get(account.name, 0.0) + pages
            if sequence is not oldest and not sequence.is_fully_launched:
                youngest[account.name] = sequence
        if not youngest:
            return None
        return youngest[max(youngest, key=held.__getitem__)]
