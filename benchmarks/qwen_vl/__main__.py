"""Qwen2.5-VL-3B on a GPU: transformers beside this engine, alone and behind its server with
streaming clients, on random weights at full size. Prints tables, writes JSON, decides nothing.

`python -m benchmarks.qwen_vl` on a GPU runs every part, each in a process of its own; `--sections`
and `--cases` take some, `--budget` bounds the seconds, `--set NAME=VALUE` changes a setting of ours
(`QWEN_VL_PREFILL_CHUNK=2048`), `--keep` adds to the figures of an earlier run. `--toy` runs the
same code at the embedded checkpoint's size, also on a CPU: its numbers say nothing. The checkpoint
is made once, on a memory disk where there is one (7.5 GB); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.common import paths
from benchmarks.common.run import Options, Run
from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl import report as qwen_vl_report
from benchmarks.qwen_vl import tables as qwen_vl_journal

RESULTS = paths.RESULTS / "qwen_vl.json"
TOY_RESULTS = paths.SCRATCH / "qwen-vl-toy.json"
DEFAULT = ("ceilings", "http", "ours", "peer", "accuracy", "attention", "soak", "vllm")
SECTIONS = (*DEFAULT, "profile", "inspect")
ALONE = ("compiling", "syncing", "attention", "steps", "firsts", "logits", "memory")
"""The journal's tables of what no client measures."""
MEMORY = Path("/dev/shm")
SLOTS, TOY_SLOTS = 64, 4


def read_options(arguments: list[str]) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qwen_vl", description=__doc__)
    add = parser.add_argument
    add("--toy", action="store_true", help="the embedded checkpoint's size, on any device")
    add("--sections", default=",".join(DEFAULT), help=f"of {', '.join(SECTIONS)}")
    add("--cases", default="", help="of the clients', such as '64 x text,1 x 448x448'")
    add("--http", action="store_true", help="the clients' cases alone")
    add("--budget", type=float, default=560.0, help="seconds for everything")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of ours")
    add("--slots", type=int, help="sequences that decode together")
    add("--device", default="", help="cuda:0, cpu, ...")
    add("--folder", type=Path, help="where the checkpoint is, or is put")
    add("--out", type=Path, help="the JSON file")
    add("--keep", action="store_true", help="keep the file's other sections")
    asked = parser.parse_args(arguments)
    asked.names = [name.strip() for name in asked.sections.split(",") if name.strip()]
    if asked.http:
        asked.names = ["ceilings", "http"]
    if unknown := set(asked.names) - set(SECTIONS):
        parser.error(f"--sections knows {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    return asked


def options_of(asked: argparse.Namespace) -> Options:
    """What every part is told."""
    shelf = MEMORY if MEMORY.is_dir() else Path("out")
    name = "qwen-vl-toy" if asked.toy else "qwen-vl-3b-random"
    return Options(
        folder=str(asked.folder or shelf / name),
        device=asked.device or ("cpu" if asked.toy else "cuda:0"),
        is_toy=asked.toy,
        slots=asked.slots or (TOY_SLOTS if asked.toy else SLOTS),
        settings=dict(each.split("=", 1) for each in asked.set),
        cases=asked.cases,
    )


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    asked = read_options(arguments)
    out = asked.out or (TOY_RESULTS if asked.toy else RESULTS)
    run = Run(options_of(asked), asked.budget, out)
    if asked.keep and out.exists():
        run.found = json.loads(out.read_text()) | {
            "options": run.found["options"], "left_out": [], "failed": {},
        }  # fmt: skip
    for name in ("make", *asked.names):
        run.part(name)
    run.found["goals"] = [] if asked.toy else qwen_vl_goals.held(run.found)
    run.save()
    print(f"\n{qwen_vl_report.as_text(run.found)}")
    for name in ALONE:
        if (table := qwen_vl_journal.table(name, run.found)) != qwen_vl_journal.MISSING:
            print(f"\n{table}")
    print(f"\nwritten to {out}")
    return 1 if run.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
