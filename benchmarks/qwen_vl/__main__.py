"""Qwen2.5-VL on a GPU, 3B or with `--size 7b` 7B: transformers beside this engine, alone and behind
its server with streaming clients, with random weights of full size. Prints tables and writes JSON.

`python -m benchmarks.qwen_vl` on a GPU runs every part in a process of its own; `--only` and
`--cases` take some, `--set NAME=VALUE` changes a setting of our server
(`QWEN_VL_PREFILL_CHUNK=2048`), `--keep` adds to the figures of an earlier run. `--probe` times the
phases of our server's steps, which costs some of what it measures: such a run is not for docs/.
`--toy` runs the same code at about the embedded checkpoint's size, also on a CPU: its numbers mean
nothing. The checkpoint is made once, on a memory disk where there is one (7.5 or 16.6 GB); nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.journal import as_text
from benchmarks.common.run import BenchmarkRun, read_arguments, rounded, run_parser
from benchmarks.qwen_vl import goals, host_tables, part, tables
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.sizes import SIZES, THREE

DEFAULT = ("ceilings", "http", "ours", "peer", "accuracy", "attention", "soak", "vllm")
SECTIONS = (*DEFAULT, "profile", "inspect")
SLOTS, TOY_SLOTS = 64, 4
LEAST_S = 15.0
"""No part is started with less time left."""


class QwenVLRun(BenchmarkRun):
    """The results of one run: four significant digits, with the goals."""

    def keep(self, earlier: dict[str, Any]) -> None:
        """Start with the parts of an earlier run. Those that are not measured again are listed in
        `kept`, by their day."""
        day = earlier.get("make", {}).get("machine", {}).get("date", "earlier")
        parts = [name for name in part.PARTS if name in earlier and name != "make"]
        kept = {name: earlier.get("kept", {}).get(name, day) for name in parts}
        self.found = {
            **earlier, "options": self.found["options"], "left_out": [], "failed": {}, "kept": kept,
        }  # fmt: skip

    def section(self, name: str, work: Callable[[], Any], least_s: float = 0.0) -> None:
        before = self.found.get(name)
        super().section(name, work, least_s)
        if self.found.get(name) is not before and self.found.get("kept", {}).pop(name, None):
            self.save()

    def results(self) -> dict[str, Any]:
        is_toy = self.found["options"]["is_toy"]
        found: dict[str, Any] = rounded(self.found)
        return found | {"goals": [] if is_toy else goals.held(self.found)}


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("python -m benchmarks.qwen_vl", __doc__, SECTIONS, DEFAULT)
    add = parser.add_argument
    add("--size", choices=SIZES, default=THREE.name, help="of the model")
    add("--cases", default="", help="of the clients', such as '64 x text,1 x 448x448'")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our server")
    add("--slots", type=int, help="sequences that decode together")
    add("--folder", type=Path, help="where the checkpoint is, or is put")
    add("--probe", action="store_true", help="time the phases of our server's steps")
    add("--keep", action="store_true", help="keep the file's other sections")
    size = SIZES[parser.parse_args(arguments).size]
    paths = (size.results(is_toy=is_toy) for is_toy in (False, True))
    asked = read_arguments(parser, arguments, *paths)
    asked.options = QwenVLOptions(
        folder=str(asked.folder or size.folder(is_toy=asked.toy)),
        device=asked.device,
        is_toy=asked.toy,
        slots=asked.slots or (TOY_SLOTS if asked.toy else SLOTS),
        settings=dict(each.split("=", 1) for each in asked.set),
        cases=asked.cases,
        size=size.name,
        has_probe=asked.probe,
    )
    return asked


def run_parts(run: BenchmarkRun, options: QwenVLOptions, names: Sequence[str]) -> None:
    """One after the other, each for as long as the budget lasts."""
    for name in names:
        file = run.out.with_suffix(f".{name}.part")
        work = partial(_part, run, options, name, file)
        run.section(name, work, least_s=LEAST_S)


def _part(run: BenchmarkRun, options: QwenVLOptions, name: str, file: Path) -> dict[str, Any]:
    return part.measure(name, options, file, run.left_s)


def main(arguments: Sequence[str]) -> int:
    """The status is 1 if a part failed."""
    asked = read_options(arguments)
    run = QwenVLRun(asked.out, asked.budget, options=asdict(asked.options))
    if asked.keep and asked.out.exists():
        run.keep(json.loads(asked.out.read_text()))
    run_parts(run, asked.options, ["make", *asked.names])
    run.save()
    print(f"\n{as_text({**tables.TABLES, **host_tables.TABLES}, run.results())}")
    if reason := run.found.get("vllm", {}).get("was not"):
        print(f"\nvLLM was not measured: {reason}")
    for name in run.found["left_out"]:
        print(f"left out: {name}")
    return run.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
