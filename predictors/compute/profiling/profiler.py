"""torch's profiler as an operator uses it: named stages, a table of what took the time, a trace for
Perfetto. Knows no model, no HTTP, and not when a step begins.

`staged` marks a pass; nobody pays for that while nothing records. A `Profiler` is started and
stopped by the thread that it looks at; its report may be made by another.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
NICENESS = 15  # whoever profiles can wait a little, whoever is served should not
REPORT_TIMEOUT_S = 120.0  # 20 steps of FLUX.1 take seconds
STAGES: set[str] = {STEP}
"""Names that were given to `staged`."""


def staged(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show a pass under this name in profiles. A tenth of a microsecond while nothing records."""
    STAGES.add(name)

    def mark(work: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(work)
        def marked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not torch._C._autograd._profiler_enabled():
                return work(*args, **kwargs)
            with record_function(name):
                return work(*args, **kwargs)

        return marked

    return mark


@dataclass(frozen=True, slots=True)
class Report:
    """What was recorded: `table` as JSON can carry it, `trace` as gzipped Chrome JSON."""

    table: dict[str, object]
    trace: bytes


class Profiler:
    """Implements `serving.recording.Recorder`: operators of the thread that starts it, and every
    kernel of the device, those of other models in this process included."""

    def __init__(self) -> None:
        self._is_cuda = torch.cuda.is_available()
        # `torch.profiler.profile` around it would write down and parse on the engine thread
        # and without Kineto a GPU has no kernels in the trace, only times between events
        self._profile = profile(use_device="cuda" if self._is_cuda else None, use_kineto=True)
        self._step: Any = None

    def start(self) -> None:
        """Raises `RuntimeError` while another profiler is on in this process."""
        self._profile.__enter__()

    def before_step(self) -> None:
        """Opens the range of a step."""
        self._step = record_function(STEP)
        self._step.__enter__()

    def after_step(self) -> None:
        """Closes it."""
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)

    def stop(self) -> None:
        """Waits for the device; what was recorded is read by `report`."""
        self.after_step()  # a step that raised has left its range open
        self._profile.__exit__(None, None, None)

    def report(self) -> Report:
        """Not on the engine thread, once, after `stop`. What takes long is done by a process of its
        own: torch's own table of 20 denoise steps would hold the interpreter for two seconds.

        Raises `DeadlineExceeded` when that process takes too long; it is killed then."""
        with _scratch() as folder:
            trace, packed = folder / "trace.json", folder / "trace.json.gz"
            self._profile.export_chrome_trace(str(trace))
            # -P: what lies beside the program is not what it imports
            command = [sys.executable, "-P", trace_table.__file__, str(trace), str(packed)]
            # from its first import on, half of what a short trace costs
            command = ["nice", f"-n{NICENESS}", *command]
            told = _told(command)
            import orjson  # a benchmark that never profiles runs where there is none

            return Report(self._table(orjson.loads(told)), packed.read_bytes())

    def _table(self, rows: list[dict[str, Any]]) -> dict[str, object]:
        order = "self_device_us" if self._is_cuda else "self_cpu_us"
        rows.sort(key=lambda row: -row[order])
        return {
            "stages": [row for row in rows if row["name"] in STAGES and row["cpu_us"]],
            "top": [row for row in rows if row["name"] not in STAGES][:NUM_SHOWN],
            "sorted_by": order,
        }


def _told(command: list[str]) -> bytes:
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
