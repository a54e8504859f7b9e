"""What one run of the Qwen benchmark was asked, and its parts. Each part is a process of its own,
so that a crash on the device, or memory somebody keeps, is nobody else's. Measures nothing itself.

A part writes what it has after every figure; one that is cut off, or dies, leaves that, and the
others run. A part that no time is left for is left out and says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LEAST_S = 15.0
"""Less than that is not worth a process."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    folder: str
    """Where the random checkpoint is, or will be."""
    device: str
    is_toy: bool
    slots: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Ours, by name after `PREDICTORS_`, such as `QWEN_VL_PREFILL_CHUNK`."""
    cases: str = ""
    """Of the clients' cases, comma-separated; all if empty."""

    def as_json(self) -> str:
        """For a part's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, raw: str) -> Options:
        """Back from `as_json`."""
        return cls(**json.loads(raw))

    def server_settings(self) -> dict[str, str]:
        """All of ours, by name after `PREDICTORS_`."""
        queue = str(4 * self.slots)
        return {
            "QWEN_VL_SLOTS": str(self.slots),
            "QWEN_VL_MAX_PIXELS": "12845056",
            "QUEUE_CAPACITY": queue,
            "COMPUTE_DEVICE": self.device,
            "SERVER_PREPARE_THREADS": "8",
            "SERVER_ACCESS_LOG": "false",
            "SERVER_LOG_LEVEL": "warning",
            **self.settings,
        }


class Notes:
    """What a part has found so far, kept in a file from the first figure on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {}

    def tell(self, name: str, value: Any) -> None:
        """Keep a figure, print it, and save all."""
        self.found[name] = value
        print(f"  {name}: {json.dumps(rounded(value))}", flush=True)
        self._path.write_text(json.dumps(self.found))


def rounded(value: Any) -> Any:
    """Floats with four digits, in whatever holds them."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


class Run:
    """The parts of one run, one after the other."""

    def __init__(self, options: Options, budget_s: float, out: Path) -> None:
        self._options = options
        self._budget_s = budget_s
        self._out = out
        self._began = time.monotonic()
        self.found: dict[str, Any] = {
            "options": asdict(options),
            "took_s": {},
            "left_out": [],
            "failed": {},
        }

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return self._budget_s - (time.monotonic() - self._began)

    def part(self, name: str) -> None:
        """Run it in a process, if there is time; keep what it found and how it ended."""
        if self.left_s < LEAST_S:
            print(f"{name}: left out, {self._budget_s:.0f} s are over", flush=True)
            self.found["left_out"].append(name)
            return
        print(f"{name}:", flush=True)
        notes = self._out.with_suffix(f".{name}.part")
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.unlink(missing_ok=True)
        started = time.monotonic()
        error = self._process(name, notes)
        if notes.exists():
            self.found[name] = json.loads(notes.read_text())
            notes.unlink()
        if error is not None:
            self.found["failed"][name] = error
        self.found["took_s"][name] = round(time.monotonic() - started, 1)
        print(f"{name}: {error or 'done'}, {self.found['took_s'][name]} s", flush=True)
        self.save()

    def _process(self, name: str, notes: Path) -> str | None:
        command = [sys.executable, "-m", "benchmarks.qwen_vl.part", name]
        with subprocess.Popen(
            [*command, self._options.as_json(), str(notes)], start_new_session=True
        ) as process:
            try:
                code = process.wait(self.left_s)
            except subprocess.TimeoutExpired:
                return f"cut off, {self._budget_s:.0f} s are over"
            finally:
                _kill_group(process.pid)  # it and whatever server it left behind
        return None if code == 0 else f"exit code {code}"

    def save(self) -> None:
        """Everything so far, into the file."""
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(rounded(self.found), indent=1) + "\n")


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
