"""torch's profiler for operators: named stages, a table of times and a trace for Perfetto.

`staged` names a pass and costs almost nothing while no profile is recorded. A `Profiler` is started
and stopped on the thread that it records; its report may be made on another.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd.profiler import profile, record_function

from predictors.compute.profiling import trace_table
from predictors.errors import DeadlineExceeded

P = ParamSpec("P")
R = TypeVar("R")

STEP = "engine_step"
NUM_SHOWN = 30  # rows of the table
NICENESS = 15  # the report may take longer, requests should not
REPORT_TIMEOUT_S = 120.0  # 20 steps of FLUX.1 take seconds
NO_KINETO_LINES = "5"  # one above the level of its errors
STAGES: set[str] = {STEP}
"""Names passed to `staged`."""


def staged(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show the pass under this name in profiles. Costs 0.1 us while nothing is recorded."""
    STAGES.add(name)

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(work)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if not torch._C._autograd._profiler_enabled():
                return work(*args, **kwargs)
            with record_function(name):
                return work(*args, **kwargs)

        return wrapper

    return decorate


def silence_kineto(environ: MutableMapping[str, str]) -> None:
    """Without a GPU, keep Kineto, which looks for one all the same, from writing to stderr.

    `environ` is the process's environment. Called before the first profile.
    """
    if not torch.cuda.is_available():
        environ.setdefault("KINETO_LOG_LEVEL", NO_KINETO_LINES)


@dataclass(frozen=True, slots=True)
class RecordedProfile:
    """`table` holds JSON values, `trace` is gzipped Chrome trace JSON."""

    table: dict[str, object]
    trace: bytes


class Profiler:
    """Implements `serving.recording.Recorder`. Records operators of the thread that starts it, and
    every kernel of the device, including those of other models in the process."""

    def __init__(self) -> None:
        self._is_cuda = torch.cuda.is_available()
        # not `torch.profiler.profile`, which would write and parse the trace on the engine thread;
        # without Kineto the trace of a GPU has no kernels, only times between events
        self._profile = profile(use_device="cuda" if self._is_cuda else None, use_kineto=True)
        self._step: Any = None

    def start(self) -> None:
        """Raises `RuntimeError` if another profiler is active in this process."""
        self._profile.__enter__()

    def before_step(self) -> None:
        self._step = record_function(STEP)
        self._step.__enter__()

    def after_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)

    def stop(self) -> None:
        """Waits for the device."""
        self.after_step()  # a step that raised has left its range open
        self._profile.__exit__(None, None, None)

    def report(self) -> RecordedProfile:
        """The report; call it once, after `stop`, and not on the engine thread.

        The table is made by a process of its own, because torch's table of 20 denoise steps would
        hold the interpreter for two seconds. Raises `DeadlineExceeded` if that process takes too
        long; it is killed then.
        """
        with _scratch() as folder:
            trace, packed = folder / "trace.json", folder / "trace.json.gz"
            self._profile.export_chrome_trace(str(trace))
            # -P: the program must not import modules from its own folder
            command = [sys.executable, "-P", trace_table.__file__, str(trace), str(packed)]
            # nice applies from the first import on, which is half the cost of a short trace
            command = ["nice", f"-n{NICENESS}", *command]
            rows = _output_of(command)
            import orjson  # imported late: benchmarks run without it

            return RecordedProfile(self._table(orjson.loads(rows)), packed.read_bytes())

    def _table(self, rows: list[dict[str, Any]]) -> dict[str, object]:
        order = "self_device_us" if self._is_cuda else "self_cpu_us"
        rows.sort(key=lambda row: -row[order])
        return {
            "stages": [row for row in rows if row["name"] in STAGES and row["cpu_us"]],
            "top": [row for row in rows if row["name"] not in STAGES][:NUM_SHOWN],
            "sorted_by": order,
        }


def _output_of(command: list[str]) -> bytes:
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, check=True, timeout=REPORT_TIMEOUT_S
        ).stdout
    except subprocess.TimeoutExpired as error:
        message = f"the profile's table took over {REPORT_TIMEOUT_S:g} s; record fewer steps"
        raise DeadlineExceeded(message) from error


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="predictors-profile-") as folder:
        yield Path(folder)
