"""Runs the generator as a process and reads what it recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.common import paths
from tests.load.generator import Plan, loop_runner, solo_answers
from tests.load.records import Record
from tests.load.target import Cores, Target, pinned

FOLDER = paths.ROOT / "out" / "load"
LATE_MS = 50.0
"""A run whose generator was later than this with one arrival of a hundred is not valid: its load
was not what was asked for, and its latencies are partly the generator's."""


def solo_file(target: Target, mix: str) -> Path:
    """The solo answers of this server, asked before any load."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with loop_runner() as runner:
        found = runner.run(solo_answers(target.port, target.grpc_port, mix))
    path = FOLDER / f"solo-{mix}.json"
    path.write_text(json.dumps(found))
    return path


class Generating:
    """A generator process while it runs; `records` is there after `wait`."""

    def __init__(self, plan: Plan, cores: Cores, name: str) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        out = FOLDER / f"{name}.json"
        out.unlink(missing_ok=True)
        self._out = out
        self.plan = replace(plan, out=str(out), core=cores.generator)
        with pinned({cores.generator}):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.load.generator"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=paths.ROOT,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(self.plan)))
        self.process.stdin.close()
        self.records: list[Record] = []
        self.is_over = False
        self.cpu_s = self.started = 0.0

    def wait_started(self) -> float:
        """When its run began, in seconds of `time.monotonic`."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Kill it: its connections end, and there are no records."""
        self.process.kill()
        self.is_over = True

    def wait(self) -> list[Record]:
        code = self.process.wait()
        if self.is_over:
            return self.records
        if code != 0:
            raise RuntimeError(f"the generator ended with {self.process.returncode}")
        found = json.loads(self._out.read_text())
        self.cpu_s, self.started = found["cpu_s"], found["started"]
        self.records = [Record(**fields) for fields in found["records"]]
        return self.records


@contextmanager
def generating(plan: Plan, cores: Cores, name: str) -> Iterator[Generating]:
    running = Generating(plan, cores, name)
    try:
        yield running
        running.wait()
    finally:
        running.process.kill()
        running.process.wait()
        running.process.stdout.close()  # type: ignore[union-attr]


def run(plan: Plan, cores: Cores, name: str) -> list[Record]:
    with generating(plan, cores, name) as running:
        pass
    return running.records
