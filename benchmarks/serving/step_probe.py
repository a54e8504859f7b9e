"""Our server of chats with the phases of each engine step timed, and the way of each first token.

    python -m benchmarks.serving.step_probe OUT serve --port 8080 --model qwen-vl=FOLDER

The rest of the command line is that of `python -m predictors`. It works by wrapping methods of the
engine, whose calls take about 2 us longer. OUT is written when the server ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

PHASES = (
    "round", "admit", "step", "plan", "launch", "pictures", "tables", "put", "replay", "choose",
    "copy", "read", "deliver",
)  # fmt: skip
"""`round` is what the engine's loop does around a step, `step` what no other phase has of it."""


class PhaseClock:
    """Seconds by phase of one thread, by the wall and of its own processor time. What a phase takes
    inside another one is not in the outer one, so that phases add up. Engine thread."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        """Of each step: when it began, in seconds of `time.monotonic`, decoding `rows`, parts of
        `prompts`, and the phases' seconds, `[wall, own]`."""
        self._phases: dict[str, list[float]] = {}
        self._inside: list[list[float]] = [[0.0, 0.0]]
        self._sizes: dict[str, int] = {}

    def time(self, owner: type, method: str, phase: str) -> None:
        """Count all calls of a method as `phase`."""
        called = getattr(owner, method)

        @wraps(called)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append([0.0, 0.0])
            wall, own = time.perf_counter(), time.thread_time()
            try:
                return called(*args, **kwargs)
            finally:
                self._count(phase, time.perf_counter() - wall, time.thread_time() - own)

        setattr(owner, method, timed)

    def _count(self, phase: str, *took: float) -> None:
        inside, known = self._inside.pop(), self._phases.setdefault(phase, [0.0, 0.0])
        for i, seconds in enumerate(took):
            known[i] += seconds - inside[i]
            self._inside[-1][i] += seconds

    def note_plan(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        """`StepLauncher.launch`, which notes how much the step launches."""

        @wraps(launch)
        def noting(launcher: Any, plan: Any, *rest: Any) -> Any:
            prompts = sum(len(each.chunks) for each in plan.prefill)
            self._sizes = {"rows": len(plan.decode), "prompts": prompts}
            return launch(launcher, plan, *rest)

        return noting

    def end_rounds(self, run_once: Callable[..., bool]) -> Callable[..., bool]:
        """`EngineLoop.run_once`, which keeps the phases of a round that had a step."""

        @wraps(run_once)
        def keeping(loop: Any) -> bool:
            self._phases, self._sizes = {}, {}
            began = time.monotonic()
            found = run_once(loop)
            if self._sizes:
                self.rounds.append({"at": began, **self._sizes, "phases": self._phases})
            return found

        return keeping


class FirstTokenMarks:
    """When a request's head had come, it was submitted, had its slot, its first pass was launched,
    its first token came and the event loop read it, in seconds of `time.monotonic`. Requests with
    several rows share one id: of them the row that is first is marked."""

    def __init__(self) -> None:
        self.requests: dict[str, list[float]] = {}
        """By the request's id."""
        self._heads: dict[str, float] = {}
        self._marks: dict[Any, list[float]] = {}

    def note_head(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        """`BasePredictor.submit`. Event loop."""

        @wraps(submit)
        def noting(predictor: Any, requests: Any, call: Any) -> Any:
            self._heads[call.request_id] = call.began_at
            return submit(predictor, requests, call)

        return noting

    def note_launch(self, reset: Callable[..., None]) -> Callable[..., None]:
        """`StepLauncher._reset_slots`: the first part of a prompt is launched. Engine thread."""

        @wraps(reset)
        def noting(launcher: Any, sequences: Sequence[Any]) -> None:
            reset(launcher, sequences)
            for job in (each.job for each in sequences if not each.num_launched):
                begun = [job.submitted_at, job.admitted_at or job.submitted_at, job.clock()]
                self._marks.setdefault(job, begun)

        return noting

    def note_token(self, observe: Callable[..., None]) -> Callable[..., None]:
        """`ChatMetrics.observe_first`. Engine thread, before the token is passed on."""

        @wraps(observe)
        def noting(found: Any, sequence: Any, now: float) -> None:
            observe(found, sequence, now)
            if sequence.job in self._marks:  # a probe must not end the engine
                self._marks[sequence.job].append(now)

        return noting

    def note_read(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """`Submission._read`. Event loop."""

        @wraps(read)
        def noting(submission: Any, chunks: Any, reader: Any) -> Any:
            job = submission._job
            marks, name = self._marks.pop(job, None), job.id.partition("/")[0]
            if marks is not None and name in self._heads:
                self.requests[name] = [self._heads.pop(name), *marks, job.clock()]
            return read(submission, chunks, reader)

        return noting


def install(runner: type | None = None, graph: type | None = None) -> Callable[[Path], None]:
    """Time all engines of this process from now on; returns a function that writes what was found.
    `runner` and `graph` are the classes in the place of `ChatRunner` and `Captured`."""
    from predictors.base import BasePredictor
    from predictors.chat import choosing, delivery, engine, launching, planning, step_inputs
    from predictors.chat.runner import ChatRunner
    from predictors.chat.sequence import ChatMetrics
    from predictors.chat.vision.pictures import PictureCache
    from predictors.compute.device.graphs import Captured
    from predictors.serving.loop import EngineLoop
    from predictors.serving.submission import Submission

    clock, marks = PhaseClock(), FirstTokenMarks()
    own, launcher = runner or ChatRunner, launching.StepLauncher
    phases: list[tuple[type, str, str]] = [
        (engine.ChatEngine, "admit", "admit"), (engine.ChatEngine, "step", "step"),
        (planning.StepPlanner, "plan", "plan"), (launcher, "launch", "launch"),
        (PictureCache, "within", "pictures"), (own, "reset_slots", "tables"),
        (step_inputs.StepInputs, "put", "put"), (graph or Captured, "__call__", "replay"),
        (choosing.TokenChooser, "choose", "choose"),
        (choosing.TokenChooser, "choose_placed", "choose"),
        (choosing.TokenChooser, "choose_controlled", "choose"), (own, "copy", "copy"),
        (planning.LaunchedStep, "read", "read"), (delivery.TokenDelivery, "deliver", "deliver"),
        (EngineLoop, "run_once", "round"),
    ]  # fmt: skip
    for owner, method, phase in phases:
        clock.time(owner, method, phase)
    notes: list[tuple[type, str, Callable[..., Any]]] = [
        (launcher, "launch", clock.note_plan), (EngineLoop, "run_once", clock.end_rounds),
        (BasePredictor, "submit", marks.note_head), (launcher, "_reset_slots", marks.note_launch),
        (ChatMetrics, "observe_first", marks.note_token), (Submission, "_read", marks.note_read),
    ]  # fmt: skip
    for owner, method, noting in notes:
        setattr(owner, method, noting(getattr(owner, method)))

    def write(out: Path) -> None:
        out.write_text(json.dumps({"rounds": clock.rounds, "requests": marks.requests}))

    return write


def probed(command: Sequence[str], out: Path) -> list[str]:
    """The command line of `benchmarks.common.server.ours`, with the probe."""
    module = [sys.executable, "-m", "benchmarks.serving.step_probe", str(out)]
    return [*module, *command[command.index("serve") :]]


def main(arguments: Sequence[str]) -> int:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `serve` does before torch is imported
    from predictors.__main__ import main as run

    write = install()
    try:
        return run(arguments[1:])
    finally:
        write(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
