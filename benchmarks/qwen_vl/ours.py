"""This engine without a server: decode steps, first tokens, preparing, start. Jobs are prepared
before they are timed, except for `prepare_ms`.

The parts of a first token follow from three prompts: about a new picture, about a cached picture
after other words (the prompt is computed again, the picture is not), and about a cached picture
first (its KV pages are shared too).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import profiling
from benchmarks.common.clock import GIB, Clock, no_synchronising
from benchmarks.common.run import PartialResults
from benchmarks.qwen_vl.cases import Pictures, text
from benchmarks.qwen_vl.options import QwenVLOptions
from predictors.__main__ import build
from predictors.chat.engine import ChatEngine
from predictors.chat.request import ChatDelta, ChatRequest, Message, Picture, Sampling
from predictors.chat.work import ChatWork
from predictors.environment import from_env
from predictors.serving.job import Job, LoopWaker

ROWS, TOY_ROWS = (1, 8, 32, 64), (1, 4)
SIZES, TOY_SIZES = ((1024, 1024), (1280, 720), (448, 448)), ((64, 64),)
TOKENS, TOY_TOKENS = 128, 12
SETTLED = 4
"""Tokens of everybody that are not counted, after the last one has read its prompt."""
REPEATS = 5
SYNC_STEPS = 32
PROFILED = 16


class Timed(Job[ChatWork, ChatDelta]):
    """A job that notes when each of its tokens was handed over."""

    def __init__(self, work: ChatWork) -> None:
        super().__init__("bench", work)
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, chunk: ChatDelta) -> LoopWaker | None:
        """On the thread that steps the engine."""
        self.times += [time.perf_counter()] * len(chunk.tokens)
        self.tokens += chunk.tokens
        return super().put(chunk)


class Ours:
    """The predictor of one checkpoint, loaded and warm; its engine is stepped by the caller."""

    def __init__(self, options: QwenVLOptions, **more: str) -> None:
        chosen = options.server_settings() | more
        settings = from_env({f"PREDICTORS_{name}": value for name, value in chosen.items()})
        self.clock = Clock(torch.device(options.device))
        self._predictor: Any = build("bench", Path(options.folder), settings)
        engine: Any = self._predictor.host._engine  # no thread: it is driven by hand
        self.engine: ChatEngine = engine
        self.load_s, _ = self.clock.seconds(self.engine.load)
        self.warm_s, _ = self.clock.seconds(lambda: self.engine.warm(lambda *_: None))

    def prepare(
        self, *parts: str | bytes, tokens: int = TOKENS, ignore_eos: bool = True
    ) -> ChatWork:
        """One user turn of texts and picture files; greedy, neutral penalties."""
        made = tuple(Picture(p) if isinstance(p, bytes) else p for p in parts)
        turn, greedy = Message("user", made), Sampling(0.0)
        request = ChatRequest((turn,), greedy, seed=0, max_tokens=tokens, ignore_eos=ignore_eos)
        return self._predictor.prepare(request)

    def answers(self, works: Iterable[ChatWork]) -> list[Timed]:
        jobs = [Timed(work) for work in works]
        self.admit(jobs)
        while self.engine.busy:
            self.engine.step(self.engine.active)
        return jobs

    def admit(self, jobs: Sequence[Timed]) -> None:
        """Raises `RuntimeError` if there are too few slots."""
        for job in jobs:
            self.engine.validate(job.work)
            if not self.engine.admit(job):
                raise RuntimeError(f"no room for {len(jobs)} jobs")

    def first_ms(self, work: ChatWork) -> float:
        """From admission to the first token of a job alone."""
        self.clock.settle()
        started = time.perf_counter()
        (job,) = self.answers([work])
        return 1e3 * (job.times[0] - started)


def ours(options: QwenVLOptions, results: PartialResults) -> None:
    """All figures, the most needed first."""
    one = Ours(options)
    results.add("load_s", one.load_s)
    results.add("warm_s", one.warm_s)
    results.add("captured", captured())
    results.attempt("first tokens", lambda: first_tokens(one, options))
    results.attempt("decode steps", lambda: decode_steps(one, options))
    results.attempt("read at once", lambda: read_at_once(one, options))
    results.attempt("syncs while decoding", lambda: syncs(one, options))
    results.attempt("prepare_ms", lambda: preparing(one, options))
    results.add("memory_gib", memory(one))
    results.add("recompilations", one.engine.guard.count)
    results.add("described", {k: str(v) for k, v in one.engine.describe().items()})


def decode_steps(one: Ours, options: QwenVLOptions) -> list[dict[str, Any]]:
    """Milliseconds per step with so many sequences, after a short prompt and after a picture."""
    width, height = (TOY_SIZES if options.is_toy else SIZES)[0]
    jpeg = Pictures(width, height).jpeg(1)
    return [
        decode_step(one, options, rows, what, lead)
        for rows in (TOY_ROWS if options.is_toy else ROWS)
        for what, lead in (("text", ()), (f"{width}x{height}", (jpeg,)))
    ]


def decode_step(
    one: Ours, options: QwenVLOptions, rows: int, what: str, lead: tuple[bytes, ...]
) -> dict[str, Any]:
    tokens = TOY_TOKENS if options.is_toy else TOKENS
    works = [one.prepare(*lead, text(i), tokens=tokens) for i in range(rows)]
    gaps = step_ms(one.answers(works))
    return {
        "rows": rows,
        "prompt": what,
        "tokens": works[0].num_prompt_tokens + tokens / 2,
        "step_ms": statistics.median(gaps),
        "p99_ms": sorted(gaps)[int(0.99 * (len(gaps) - 1))],
    }


def read_at_once(one: Ours, options: QwenVLOptions) -> list[dict[str, Any]]:
    """Text steps whose tokens are awaited before the next step is launched, as in a loop with a
    device-to-host copy per token; empty where that is how it is served."""
    runner: Any = one.engine._launcher.runner
    if not getattr(runner, "is_ahead", False):
        return []
    runner.is_ahead = False
    try:
        return [decode_step(one, options, rows, "text", ()) for rows in ROWS]
    finally:
        runner.is_ahead = True


def step_ms(jobs: Sequence[Timed]) -> list[float]:
    """Times between the steps in which all jobs decode."""
    began, ended = max(job.times[0] for job in jobs), min(job.times[-1] for job in jobs)
    last = max(jobs, key=lambda job: job.times[0])
    times = [at for at in last.times if began <= at <= ended][SETTLED:]
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)]


def first_tokens(one: Ours, options: QwenVLOptions) -> dict[str, Any]:
    """Medians; the picture's and the prompt's part by difference."""
    found: dict[str, Any] = {"text": {"ms": _median(one, lambda i: (text(5000 + i),))}}
    for width, height in TOY_SIZES if options.is_toy else SIZES:
        pictures = Pictures(width, height)
        known = pictures.jpeg(7)
        one.answers([one.prepare(known, text(1), tokens=2)])
        new = _median(one, lambda i, made=pictures: (made.jpeg(100 + i), text(i)))
        prompt = _median(one, lambda i, file=known: (text(2000 + i), file, text(i)))
        prefix = _median(one, lambda i, file=known: (file, text(3000 + i)))
        found[f"{width}x{height}"] = {
            "ms": new,
            "known picture, prompt read anew": prompt,
            "known picture first": prefix,
            "picture's part": new - prompt,
        }
    return found


def _median(one: Ours, parts: Callable[[int], tuple[str | bytes, ...]]) -> float:
    works = [one.prepare(*parts(i), tokens=2) for i in range(REPEATS + 1)]
    return statistics.median([one.first_ms(work) for work in works][1:])


def preparing(one: Ours, options: QwenVLOptions) -> dict[str, float]:
    """Of one request on one thread: JPEG, resizing, template, tokens."""
    found = {"text": _prepare_ms(one, [(text(i),) for i in range(REPEATS)])}
    for width, height in TOY_SIZES if options.is_toy else SIZES:
        pictures = Pictures(width, height)
        rows = [(pictures.jpeg(50_000 + i), text(i)) for i in range(REPEATS)]
        found[f"{width}x{height}"] = _prepare_ms(one, rows)
    return found


def _prepare_ms(one: Ours, rows: Sequence[tuple[str | bytes, ...]]) -> float:
    times = []
    for parts in rows:
        started = time.perf_counter()
        one.prepare(*parts)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def syncs(one: Ours, options: QwenVLOptions) -> int | str:
    """0 if no call of some decode steps made the host wait for the device, else the error."""
    tokens = SETTLED + (TOY_TOKENS if options.is_toy else SYNC_STEPS) + 4
    jobs = [Timed(one.prepare(text(i), tokens=tokens)) for i in range(min(4, options.slots))]
    one.admit(jobs)
    while any(len(job.times) < SETTLED for job in jobs):
        one.engine.step(one.engine.active)
    found: int | str = 0
    try:
        with no_synchronising(one.clock):
            for _ in range(tokens - SETTLED - 4):
                one.engine.step(one.engine.active)
    except RuntimeError as error:
        found = repr(error)[:500]
    while one.engine.busy:
        one.engine.step(one.engine.active)
    return found


def profile(options: QwenVLOptions, results: PartialResults) -> None:
    """The kernels of some decode steps, alone and together, and of a first token."""
    one = Ours(options)
    folder = Path(options.folder).parent / "qwen-vl-traces"
    width, height = (TOY_SIZES if options.is_toy else SIZES)[0]
    pictures = Pictures(width, height)
    rows = (TOY_ROWS if options.is_toy else ROWS)[-1]
    ways: dict[str, list[ChatWork]] = {
        "1 row, text": [one.prepare(text(1), tokens=PROFILED)],
        f"{rows} rows, text": [one.prepare(text(i), tokens=PROFILED) for i in range(rows)],
        f"first token, {width}x{height}": [one.prepare(pictures.jpeg(3), text(3), tokens=1)],
    }
    one.answers([one.prepare(pictures.jpeg(2), text(2), tokens=2)])
    for name, works in ways.items():
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.json.gz"
        kernels = profiling.trace(one.clock, lambda given=works: one.answers(given), path)
        print(f"\n{name}, {PROFILED} tokens, trace in {path}\n{profiling.as_text(kernels)}")
        results.found[name] = kernels
    results.add("traces", str(folder))


def memory(one: Ours) -> dict[str, float]:
    """Device memory so far, the KV pool included; zeros on the CPU."""
    return {"held": one.clock.held_bytes() / GIB, "peak": (one.clock.peak_bytes() or 0) / GIB}


def captured() -> dict[str, float]:
    """Seconds of capturing and compiling in this process, from the metrics."""
    from predictors import metrics

    family = next(iter(metrics.model_phase_seconds.collect()))
    return {sample.labels["phase"]: sample.value for sample in family.samples}
