"""The whole end-to-end run, stage by stage: build, images, cluster up, images into it, tests,
cluster down. Says how long each stage took and keeps what it printed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.places import ROOT, logs

CLUSTER = (sys.executable, "-m", "tests.e2e.cluster")
IMAGE = (sys.executable, "-m", "tests.e2e.image")
BRING = shlex.join(IMAGE) + ' import --containerd "$E2E_CONTAINERD"'


@dataclass(frozen=True)
class Stage:
    """One command of the run; the first that fails ends it."""

    name: str
    command: tuple[str, ...]


def stages(tests: Sequence[str], out: Path) -> tuple[Stage, ...]:
    """The stages of a run before the cluster is taken down; `tests` are pytest's arguments."""
    # a rollout under traffic takes minutes: no stacks in the log before it would be cut off
    quiet = ("-p", "no:cacheprovider", "-o", "faulthandler_timeout=400")
    pytest = (sys.executable, "-m", "pytest", *quiet, *tests)
    report = f"--junitxml={out}/junit.xml"
    return (
        Stage("cluster-build", (*CLUSTER, "build")),
        Stage("image-build", (*IMAGE, "build")),
        Stage("cluster-up", (*CLUSTER, "up")),
        Stage("image-import", (*CLUSTER, "run", "--", "bash", "-c", BRING)),
        Stage("tests", (*CLUSTER, "run", "--", *pytest, report)),
    )


def run_suite(tests: Sequence[str], out: Path | None = None) -> int:
    """Run every stage and take the cluster down whatever happens; the first bad exit code."""
    folder = out or logs()
    folder.mkdir(parents=True, exist_ok=True)
    code = 0
    taken: list[str] = []
    try:
        for stage in stages(tests, folder):
            code = run_stage(stage, folder, taken)
            if code:
                break
    finally:
        down = run_stage(Stage("cluster-down", (*CLUSTER, "down")), folder, taken)
        print(f"logs are in {folder}; {', '.join(taken)}", flush=True)
    return code or down


def run_stage(stage: Stage, folder: Path, taken: list[str]) -> int:
    """Run one stage, show and keep what it prints, note its seconds; its exit code."""
    print(f"== {stage.name}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "E2E_OUT": str(folder), "PYTHONUNBUFFERED": "1"}
    with (
        (folder / f"{stage.name}.log").open("wb") as kept,
        subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                kept.write(line)
        except BaseException:
            process.terminate()  # cut off by a signal: the stage, too, undoes what it must
            raise
    code = process.returncode
    taken.append(f"{stage.name} {time.monotonic() - start:.0f} s")
    print(f"== {taken[-1]}, exit code {code}", flush=True)
    return code
