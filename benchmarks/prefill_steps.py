"""The bound of `qwen_vl.prefill_steps` simulated: gaps between tokens, requests per second and time
to the first token by k, with the engine's own planner, pool and paging.

`python -m benchmarks.prefill_steps` prints a table and writes JSON. Seconds are virtual: a step
takes what its parts took on an H200 with Qwen2.5-VL-3B, in tables of this file. No device is
needed, every run gives the same numbers, and nothing of it is a measurement.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.journal import Rows, Tables
from benchmarks.common.run import rounded, write_json
from benchmarks.common.tables import columns
from predictors.chat import sequence as sequences_of
from predictors.chat.kv_cache import PagePool
from predictors.chat.launching import ends_prompt
from predictors.chat.limits import EngineLimits, aligned, packed_widths
from predictors.chat.model import EncodedPicture
from predictors.chat.paging import Paging
from predictors.chat.placing import PlacedPicture
from predictors.chat.planning import LaunchedStep, StepPlanner
from predictors.chat.request import Sampling
from predictors.chat.scheduling import interpolated_seconds
from predictors.chat.sequence import ChatJob, ChatMetrics
from predictors.chat.step_budget import PassTimes, StepBudget
from predictors.chat.vision.pictures import PictureCache
from predictors.chat.vision.pixels import PreparedPicture
from predictors.chat.work import ChatWork
from predictors.cli.bench.intervals import quantile
from predictors.serving.accounts import Account
from predictors.serving.job import Job

RESULTS = paths.RESULTS / "prefill_steps.json"
STEPS = (0.0, 1.0, 1.4, 1.7, 2.0, 3.0, 4.0)
WAYS = ("apart", "mixed")
"""Prompts and rows that decode in two passes, and in one (`qwen_vl.mixed_passes`)."""
SLOTS, PAGE, CONTEXT = 64, 64, 32768
WIDTHS = packed_widths(1536)
ANSWER = 128
BEGIN = 15
"""Tokens before a prompt's picture."""
KEY_S = 1.2e-8
"""More for each token that a row has in the cache: 64 rows after 1024x1024 take 4.14 ms."""
CARD = PassTimes.of(
    {1: 1.80e-3, 2: 2.55e-3, 8: 2.57e-3, 16: 2.62e-3, 32: 2.66e-3, 48: 2.74e-3, 64: 2.74e-3},
    {
        16: 2.76e-3, 48: 2.85e-3, 80: 3.06e-3, 112: 3.12e-3, 144: 3.31e-3, 176: 3.41e-3,
        208: 3.69e-3, 288: 4.29e-3, 336: 4.58e-3, 400: 5.13e-3, 464: 5.53e-3, 544: 6.30e-3,
        624: 6.56e-3, 720: 7.58e-3, 832: 8.86e-3, 1104: 10.6e-3, 1536: 14.8e-3,
    },
    {64: 1.83e-3, 256: 3.40e-3, 1024: 11.0e-3, 4096: 66.8e-3},
)  # fmt: skip
"""As a start on the card measured them (`step_budget` of `/debug/engine`, 2026-11-30)."""
MIXED_S = 0.3e-3
"""Attention of the rows that decode, in a pass over prompts and them."""
SPREAD_S = 5e-3
"""All clients begin within this time, as those of the benchmark do."""
WARM_UP = 3
"""Requests per client before the counting starts."""


@dataclass(frozen=True, slots=True)
class Load:
    """Closed loops of equal requests. `prepare_s` passes before a request reaches the engine."""

    clients: int
    prompt: int
    picture: int
    prepare_s: float


LOADS = {
    "64 x text": Load(64, 63, 0, 0.2e-3),
    "64 x 448x448": Load(64, 321, 256, 3.5e-3),
    "64 x 1024x1024": Load(64, 1434, 1369, 13.5e-3),
    "96 x text": Load(96, 63, 0, 0.2e-3),
    "8 x 1024x1024": Load(8, 1434, 1369, 13.5e-3),
}


@cache
def pass_times(way: str) -> PassTimes:
    """As a start on the card would measure them. A mixed pass takes what a pass of the rows of both
    kinds does, and `MIXED_S`."""
    prompt = {width: prompt_s(width) for width in WIDTHS}
    mixed = {width: prompt_s(width + SLOTS) + MIXED_S for width in WIDTHS}
    return PassTimes.of(CARD.decode, prompt, CARD.vision, mixed if way == "mixed" else {})


def prompt_s(rows: int) -> float:
    """Seconds of a pass of so many rows, in proportion above those that were measured."""
    return interpolated_seconds(CARD.prompt, rows) * max(1.0, rows / max(CARD.prompt))


@dataclass
class Found:
    """Of one run, after its first answers."""

    began_s: float = 0.0
    ended_s: float = 0.0
    answers: int = 0
    gaps_s: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)
    decode_steps: int = 0
    passes: int = 0
    rows: int = 0

    def figures(self) -> dict[str, float]:
        per_token = sum(self.gaps_s) / len(self.gaps_s)
        return {
            "gap_ms_p99": 1e3 * (quantile(self.gaps_s, 0.99) or 0.0),
            "gap_ms_most": 1e3 * max(self.gaps_s),
            "ms_per_token": 1e3 * per_token,
            "requests_per_s": self.answers / (self.ended_s - self.began_s),
            "first_ms_p50": 1e3 * (quantile(self.firsts_s, 0.5) or 0.0),
            "first_ms_p99": 1e3 * (quantile(self.firsts_s, 0.99) or 0.0),
            "rows_per_pass": self.rows / max(1, self.passes),
        }


class SimulatedEngine:
    """One engine, without a device, and its clients, who are one caller."""

    def __init__(self, load: Load, steps: float, way: str, seed: int) -> None:
        self.load, self.times = load, pass_times(way)
        pages = 2 * SLOTS * (load.prompt + ANSWER + PAGE) // PAGE
        limits = EngineLimits(SLOTS, PAGE, pages, CONTEXT, (SLOTS,), WIDTHS)
        own = ChatMetrics("simulated")
        self.planner = StepPlanner(SLOTS, PictureCache(0, own))
        if steps:
            self.planner.set_budget(StepBudget(self.times, steps))
        self.sequences: dict[ChatJob, sequences_of.Sequence] = {}
        pool = PagePool(pages, PAGE)
        given = (pool, self.sequences, self.planner.holders, limits, own)
        self.paging = Paging(*given, may_preempt=True)
        self.slots = deque(range(SLOTS))
        self.account = Account("all")
        self.now = 0.0
        self.number = 0
        starts = random.Random(seed)
        sent_at = [starts.uniform(0.0, SPREAD_S) for _ in range(load.clients)]
        self.sent = [(at + load.prepare_s, at) for at in sent_at]
        """When the requests to come reach the engine, and when each was sent."""
        self.asked_at: dict[ChatJob, float] = {}
        self.last_at: dict[ChatJob, float] = {}
        self.found = Found()

    def run(self, answers: int) -> Found:
        first = WARM_UP * self.load.clients
        ended = 0
        while ended < first + answers:
            self.admit()
            ended += self.step()
            if ended < first:
                self.found = Found(began_s=self.now)
        self.found.ended_s = self.now
        return self.found

    # -- requests --------------------------------------------------------------------------------
    def job(self) -> ChatJob:
        load = self.load
        self.number += 1
        key = str(self.number).encode()
        picture = PreparedPicture(key, (2, 2), 0, torch.empty(0))
        tokens = torch.zeros(load.prompt, dtype=torch.int64)
        work = ChatWork(
            tokens,
            tokens.expand(3, -1),
            load.prompt,
            (PlacedPicture(BEGIN, load.picture, picture),) if load.picture else (),
            Sampling(),
            0,
            max_tokens=ANSWER,
            stop=(),
            ignore_eos=True,
            expected_tokens=ANSWER,
        )
        job: ChatJob = Job("simulated", work)
        job.account = self.account
        return job

    def admit(self) -> None:
        """Give slots to requests that are there; the others wait."""
        self.sent.sort()
        if not self.sequences and self.sent[0][0] > self.now:
            self.now = self.sent[0][0]
        while self.slots and self.sent and self.sent[0][0] <= self.now:
            _, sent_at = self.sent.pop(0)
            job = self.job()
            sequence = sequences_of.Sequence(job, self.slots[0], self.load.prompt, frozenset())
            assert self.paging.admit(sequence), "the pool takes all"
            self.slots.popleft()
            self.sequences[job] = sequence
            self.asked_at[job] = sent_at
            self.planner.holders.add(job)
        self.account.waiting = sum(at <= self.now for at, _ in self.sent)

    # -- steps -----------------------------------------------------------------------------------
    def step(self) -> int:
        """Take a step; returns the answers that ended."""
        plan = self.planner.plan(list(self.sequences.values()), self.paging, WIDTHS, is_packed=True)
        self.paging.put_tables(lambda *_: None)
        chunks = [chunk for each in plan.prefill for chunk in each.chunks]
        told = [*plan.decode, *(c.key for c in chunks if ends_prompt(c))]
        keys = sum(s.num_prompt_tokens + s.num_launched for s in plan.decode)
        seconds = KEY_S * keys
        times = self.times
        if plan.decode:
            seconds += times.decode_s(len(plan.decode))
            self.found.decode_steps += 1
        for each in plan.prefill:
            seconds += times.prompt_s(each.width, len(plan.decode))
            self.found.passes += 1
            self.found.rows += sum(aligned(chunk.length) for chunk in each.chunks)
        seconds += sum(times.vision_s(chunk.picture_tokens) for chunk in chunks)
        assert seconds, "no sequence got on"
        step = LaunchedStep(chunks, told, len(plan.decode), None, self.now)  # type: ignore[arg-type]
        self.now += seconds
        self.planner.note_launched(step)
        for chunk in chunks:
            chunk.key.is_begun, chunk.key.num_prefilled = True, chunk.start + chunk.length
            if chunk.picture_tokens:
                chunk.key.pictures[0] = EncodedPicture(torch.empty(0))
        self.planner.charge_finished(step, self.now)
        return sum(self.tell(sequence) for sequence in told)

    def tell(self, sequence: sequences_of.Sequence) -> bool:
        """A token of it reaches its client; returns True if it was the last one."""
        job = sequence.job
        sequence.num_launched += 1
        sequence.answer.append(0)
        if (before := self.last_at.get(job)) is None:
            self.found.firsts_s.append(self.now - self.asked_at[job])
        else:
            self.found.gaps_s.append(self.now - before)
        self.last_at[job] = self.now
        if len(sequence.answer) < ANSWER:
            return False
        del self.sequences[job], self.last_at[job], self.asked_at[job]
        self.slots.append(sequence.slot)
        self.planner.holders.remove(job)
        self.paging.release(sequence)
        self.found.answers += 1
        self.sent.append((self.now + self.load.prepare_s, self.now))
        return True


# -- tables ----------------------------------------------------------------------------------------
def simulated_rows(found: Mapping[str, Any], way: str) -> Rows:
    """Simulated figures by load and k."""
    if "loads" not in found:
        return
    yield (
        "clients", "k", "gap p99, ms", "longest, ms", "ms per token", "requests/s",
        "first token p50, ms", "p99, ms", "rows per pass",
    )  # fmt: skip
    for name, by_steps in found["loads"][way].items():
        for steps, figures in by_steps.items():
            yield (
                name,
                steps if float(steps) else "0 (no bound)",
                f"{figures['gap_ms_p99']:.1f}",
                f"{figures['gap_ms_most']:.1f}",
                f"{figures['ms_per_token']:.2f}",
                f"{figures['requests_per_s']:.1f}",
                f"{figures['first_ms_p50']:.0f}",
                f"{figures['first_ms_p99']:.0f}",
                f"{figures['rows_per_pass']:.0f}",
            )


ON_PAGES: Tables = {
    "apart": lambda found: simulated_rows(found, "apart"),
    "mixed": lambda found: simulated_rows(found, "mixed"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill_steps", description=__doc__)
    parser.add_argument("--answers", type=int, default=1000, help="counted, of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    found: dict[str, Any] = {"kind": "simulation, not a measurement", "answers": asked.answers}
    found["loads"] = {
        way: {
            name: {
                f"{steps:g}": rounded(
                    SimulatedEngine(load, steps, way, asked.seed).run(asked.answers).figures()
                )
                for steps in STEPS
            }
            for name, load in LOADS.items()
        }
        for way in WAYS
    }
    for way in WAYS:
        print(f"\npasses: {way}\n{columns(list(simulated_rows(found, way)))}", flush=True)
    write_json(asked.out, found)


if __name__ == "__main__":
    main()
