"""The whole end-to-end run, stage by stage: build, images beside cluster up, images into it, tests,
cluster down. Says how long each stage took and keeps what it printed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.cluster.places import ROOT, logs

CLUSTER = (sys.executable, "-m", "tests.e2e.cluster")
IMAGE = (sys.executable, "-m", "tests.e2e.image")
BRING = shlex.join(IMAGE) + ' import --containerd "$E2E_CONTAINERD"'


@dataclass(frozen=True)
class Stage:
    """One command of the run."""

    name: str
    command: tuple[str, ...]


@dataclass
class Run:
    """A run so far: its logs, the seconds of each stage, and the processes that are at work.

    Filled by `run_stage`, in a thread per stage.
    """

    folder: Path
    taken: list[str] = field(default_factory=list)
    at_work: list[subprocess.Popen[bytes]] = field(default_factory=list)


def stages(tests: Sequence[str], out: Path) -> tuple[tuple[Stage, ...], ...]:
    """The stages of a run before the cluster is taken down, those of one tuple side by side.

    `tests` are pytest's arguments.
    """
    # a rollout under traffic takes minutes: no stacks in the log before it would be cut off
    quiet = ("-p", "no:cacheprovider", "-o", "faulthandler_timeout=400")
    pytest = (sys.executable, "-m", "pytest", *quiet, *tests)
    report = f"--junitxml={out}/junit.xml"
    return (
        (Stage("cluster-build", (*CLUSTER, "build")),),
        # the cluster waits for its parts most of the time, the build for the disk
        (Stage("image-build", (*IMAGE, "build")), Stage("cluster-up", (*CLUSTER, "up"))),
        (Stage("image-import", (*CLUSTER, "run", "--", "bash", "-c", BRING)),),
        (Stage("tests", (*CLUSTER, "run", "--", *pytest, report)),),
    )


def run_suite(tests: Sequence[str], out: Path | None = None) -> int:
    """Run every stage until one fails and take the cluster down whatever happens; the first bad
    exit code."""
    run = Run(out or logs())
    run.folder.mkdir(parents=True, exist_ok=True)
    code = 0
    try:
        for group in stages(tests, run.folder):
            code = run_group(group, run)
            if code:
                break
    finally:
        down = run_group((Stage("cluster-down", (*CLUSTER, "down")),), run)
        print(f"logs are in {run.folder}; {', '.join(run.taken)}", flush=True)
    return code or down


def run_group(group: Sequence[Stage], run: Run) -> int:
    """Run stages side by side until all have ended; the first bad exit code."""
    with ThreadPoolExecutor(len(group)) as pool:
        try:
            codes = list(pool.map(lambda stage: run_stage(stage, run), group))
        except BaseException:
            for process in run.at_work:
                process.terminate()  # cut off by a signal: a stage, too, undoes what it must
            raise
    return next((code for code in codes if code), 0)


def run_stage(stage: Stage, run: Run) -> int:
    """Run one stage, show and keep what it prints, note its seconds; its exit code."""
    print(f"== {stage.name}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "E2E_OUT": str(run.folder), "PYTHONUNBUFFERED": "1"}
    with (
        (run.folder / f"{stage.name}.log").open("wb") as kept,
        subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        run.at_work.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            kept.write(line)
    run.at_work.remove(process)
    run.taken.append(f"{stage.name} {time.monotonic() - start:.0f} s")
    print(f"== {run.taken[-1]}, exit code {process.returncode}", flush=True)
    return process.returncode
