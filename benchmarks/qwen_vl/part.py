"""The parts of the Qwen benchmark, each in a process of its own, so that a crash on the device or
memory that is never freed stays in one part. A part writes its figures as it goes; what a part that
dies or is cut off has written is kept.

`benchmarks.qwen_vl` starts `python -m benchmarks.qwen_vl.part NAME OPTIONS FILE`: OPTIONS is
`QwenVLOptions` as JSON, the figures go into FILE.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common.run import PartialResults, SectionFailed
from benchmarks.qwen_vl.options import QwenVLOptions

Part = Callable[[QwenVLOptions, PartialResults], None]

PARTS: Mapping[str, str] = {
    "make": "benchmarks.qwen_vl.bases",
    "ceilings": "benchmarks.qwen_vl.bases",
    "peer": "benchmarks.qwen_vl.peer",
    "ours": "benchmarks.qwen_vl.ours",
    "profile": "benchmarks.qwen_vl.ours",
    "attention": "benchmarks.qwen_vl.attention",
    "accuracy": "benchmarks.qwen_vl.accuracy",
    "http": "benchmarks.qwen_vl.http",
    "soak": "benchmarks.qwen_vl.http",
    "vllm": "benchmarks.qwen_vl.http",
    "inspect": "benchmarks.qwen_vl.inspection",
}
"""Name of a part -> module with the function of that name. Imported late: the clients need no
torch."""


def measure(name: str, options: QwenVLOptions, file: Path, seconds: float) -> dict[str, Any]:
    """Run a part in a process and return its figures. Raises `SectionFailed` with the figures so
    far if it dies or is not done after `seconds`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    error = _process(name, options, file, seconds)
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    file.unlink(missing_ok=True)
    if error is not None:
        raise SectionFailed(error, found)
    return found or {}


def _process(name: str, options: QwenVLOptions, file: Path, seconds: float) -> str | None:
    command = [sys.executable, "-m", "benchmarks.qwen_vl.part", name, options.as_json(), str(file)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
        finally:
            _kill_group(process.pid)  # with any server it left behind
    return None if code == 0 else f"exit code {code}"


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: list[str]) -> None:
    name, options, path = arguments
    warnings.simplefilter("ignore")  # the peer's and the compiler's own
    part: Part = getattr(import_module(PARTS[name]), name)
    part(QwenVLOptions.of(options), PartialResults(Path(path)))


if __name__ == "__main__":
    main(sys.argv[1:])
