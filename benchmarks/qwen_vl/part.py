"""One part of the Qwen benchmark, in this process. Knows which name is which function.

`python -m benchmarks.qwen_vl.part NAME OPTIONS FILE` is what `benchmarks.qwen_vl` starts: OPTIONS
is `Options` as JSON, what was found goes into FILE.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from benchmarks.common.run import Notes, Options

Part = Callable[[Options, Notes], None]

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
"""By name: where the function of that name is. Imported late: the clients need no torch."""


def main(arguments: list[str]) -> None:
    """Run it."""
    name, options, path = arguments
    warnings.simplefilter("ignore")  # the peer's and the compiler's own
    part: Part = getattr(import_module(PARTS[name]), name)
    part(Options.of(options), Notes(Path(path)))


if __name__ == "__main__":
    main(sys.argv[1:])
