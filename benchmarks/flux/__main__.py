"""FLUX on a GPU: diffusers eager and compiled beside this engine, tier by tier, in one process on
one card, on random weights at full size. Prints tables, writes JSON, decides nothing.

`python -m benchmarks.flux` on a GPU takes about six minutes; `--only`, `--sizes`, `--steps` and
`--skip-peer` take parts of it. `--toy` runs the same code at the embedded checkpoint's size, also
on a CPU: its numbers say nothing. Neither KServe nor a download is needed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.common import paths
from benchmarks.flux import sections as flux_sections
from benchmarks.flux.journal import Journal, Options
from benchmarks.flux.random_weights import FULL, TOY

RESULTS = paths.RESULTS / "flux.json"
TOY_RESULTS = paths.SCRATCH / "flux-toy.json"
SECTIONS = ("accuracy", "dev", "widths", "steady", "schnell", "start", "headline", "disk")
DEFAULT = ("accuracy", "dev", "widths", "steady", "schnell", "start")


def read_options(arguments: list[str]) -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flux", description=__doc__)
    add = parser.add_argument
    add("--toy", action="store_true", help="the embedded checkpoint's size, on any device")
    add("--only", default=",".join(DEFAULT), help=f"of {', '.join(SECTIONS)}")
    add("--sizes", help="WIDTHxHEIGHT, comma-separated; the first one gets the stages")
    add("--steps", help="comma-separated, the longest first")
    add("--runs", type=int, help="timed runs of the first case; the others have two")
    add("--tiers", default="lossless,high,turbo", help="of ours, comma-separated")
    add("--skip-peer", action="store_true", help="this engine alone")
    add("--backend", help="of the peer's torch.compile")
    add("--budget", type=float, default=540.0, help="seconds after which no section begins")
    add("--device", help="cuda:0, cpu, ...")
    add("--out", type=Path, help="the JSON file")
    add("--profile", type=Path, help="also trace a picture per tier to PATH-TIER.json.gz")
    asked = parser.parse_args(arguments)
    is_toy = asked.toy
    only = {name.strip() for name in asked.only.split(",") if name.strip()}
    if unknown := only - set(SECTIONS):
        parser.error(f"--only knows {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    device = asked.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not is_toy:
        parser.error("full size needs a GPU; there is --toy")
    sizes = asked.sizes or ("64x64,96x64" if is_toy else "1024x1024,512x512,768x1344")
    steps = asked.steps or ("10,2" if is_toy else "28,4")
    return Options(
        device=torch.device(device),
        changes=(TOY if is_toy else FULL,),
        sizes=tuple(sizes.split(",")),
        steps=tuple(int(n) for n in steps.split(",")),
        runs=asked.runs or (1 if is_toy else 3),
        other_runs=1 if is_toy else min(2, asked.runs or 2),
        tiers=asked.tiers,
        slots=2 if is_toy else 4,
        only=frozenset(only | ({"profile"} if asked.profile else set())),
        has_peer=not asked.skip_peer,
        backend=asked.backend or ("eager" if is_toy else "inductor"),
        budget_s=asked.budget,
        out=asked.out or (TOY_RESULTS if is_toy else RESULTS),
        trace=asked.profile,
    )


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    journal = Journal(read_options(arguments))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="flux-bench-") as folder:
        # the peer's and the compiler's own: deprecations, advice on float32 precision
        warnings.simplefilter("ignore")
        flux_sections.run(journal, Path(folder))
    journal.save()
    journal.print()
    return 1 if journal.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
