"""FLUX on a GPU: diffusers eager and compiled beside this engine, tier by tier, in one process on
one card, with random weights of full size. Prints tables and writes JSON.

`python -m benchmarks.flux` on a GPU takes about six minutes; `--only`, `--sizes`, `--steps` and
`--skip-peer` take parts of it. `--toy` runs the same code at the embedded checkpoint's size, also
on a CPU: its numbers mean nothing. It needs neither KServe nor a download.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import paths
from benchmarks.common.journal import as_text
from benchmarks.common.run import read_arguments, run_parser
from benchmarks.flux import sections, tables
from benchmarks.flux.random_weights import FULL, TOY
from benchmarks.flux.run import FluxOptions, FluxRun

RESULTS = paths.RESULTS / "flux.json"
TOY_RESULTS = paths.SCRATCH / "flux-toy.json"
DEFAULT = ("accuracy", "dev", "widths", "steady", "schnell", "start")
SECTIONS = (*DEFAULT, "headline", "disk")


def read_options(arguments: Sequence[str]) -> FluxRun:
    parser = run_parser("python -m benchmarks.flux", __doc__, SECTIONS, DEFAULT)
    add = parser.add_argument
    add("--sizes", help="WIDTHxHEIGHT, comma-separated; the first one gets the stages")
    add("--steps", help="comma-separated, the longest first")
    add("--runs", type=int, help="timed runs of the first case; the others have two")
    add("--tiers", default="lossless,high,turbo", help="of this engine, comma-separated")
    add("--skip-peer", action="store_true", help="this engine alone")
    add("--backend", help="of the peer's torch.compile")
    add("--profile", type=Path, help="also trace a picture per tier to PATH-TIER.json.gz")
    asked = read_arguments(parser, arguments, RESULTS, TOY_RESULTS)
    is_toy = asked.toy
    sizes = asked.sizes or ("64x64,96x64" if is_toy else "1024x1024,512x512,768x1344")
    steps = asked.steps or ("10,2" if is_toy else "28,4")
    options = FluxOptions(
        device=torch.device(asked.device),
        changes=(TOY if is_toy else FULL,),
        sizes=tuple(sizes.split(",")),
        steps=tuple(int(n) for n in steps.split(",")),
        runs=asked.runs or (1 if is_toy else 3),
        other_runs=1 if is_toy else min(2, asked.runs or 2),
        tiers=asked.tiers,
        slots=2 if is_toy else 4,
        only=frozenset(asked.names + (["profile"] if asked.profile else [])),
        has_peer=not asked.skip_peer,
        backend=asked.backend or ("eager" if is_toy else "inductor"),
        trace=asked.profile,
    )
    return FluxRun(options, asked.budget, asked.out)


def main(arguments: Sequence[str]) -> int:
    """The status is 1 if a section failed."""
    run = read_options(arguments)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="flux-bench-") as folder:
        # the peer's and the compiler's own: deprecations, advice on float32 precision
        warnings.simplefilter("ignore")
        sections.measure(run, Path(folder))
    run.save()
    print(f"\n{as_text(tables.OF_A_RUN, run.results())}")
    return run.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
