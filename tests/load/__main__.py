"""`python -m tests.load` runs the load against the command line's server with the embedded models,
prints tables and what must be shown, and writes benchmarks/results/load-*.json and two pictures.

`make load` takes about 16 minutes on two quiet cores. `--minutes` of `--only flat` is the soak.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from tests.load import ceiling, curve, flat, greedy, pages, plots, report, sigterm
from tests.load.runs import FOLDER, solo_file
from tests.load.target import Cores, Target

MIXES = ("flux", "qwen-vl", "mixed")
PARTS = ("curve", "flat", "greedy", "sigterm")
SIGTERMS = 20
SIGTERM_RATE = 40.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    add = parser.add_argument
    add("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    add("--seed", type=int, default=1000)
    add("--seconds", type=float, default=18.0, help="of each point of a curve, half below 100 %%")
    add("--requests", type=int, default=13_000, help="of the flat run")
    add("--minutes", type=float, default=0.0, help="least length of the flat run")
    add("--repetitions", type=int, default=SIGTERMS, help="of SIGTERM")
    add("--out", type=Path, default=paths.RESULTS, help="folder of the JSON files")
    add("--remark", default="", help="what else ran on the machine, for the JSON files")
    return parser.parse_args()


class Run:
    """The parts of one invocation."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._cores = Cores.split()
        self._found: dict[str, dict[str, Any]] = {}

    def do(self, part: str) -> None:
        began = time.monotonic()
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "curve": self._curve, "flat": self._flat, "greedy": self._greedy,
            "sigterm": self._sigterm,
        }  # fmt: skip
        found = works[part]()
        found["took_s"] = round(time.monotonic() - began, 1)
        self._found[part] = found
        report.save(part, found, self._cores, self._asked.out, self._asked.remark)
        print(f"{part} took {found['took_s']} s\n", flush=True)

    def show(self) -> bool:
        """Print what must be shown by the parts that ran; true if all is met."""
        rows = report.shown(*(self._found.get(part, {}) for part in PARTS))
        print(report.table(iter(rows)))
        return all(row[-1] == "yes" for row in rows[1:])

    def _curve(self) -> dict[str, Any]:
        found: dict[str, Any] = {"generator": ceiling.ceiling(self._cores), "curves": {}}
        print(f"the generator is on time up to {found['generator']['best']} requests per second")
        for i, mix in enumerate(MIXES):
            # a server of its own: what one mix leaves behind is not the next one's
            with Target(FOLDER / f"curve-{mix}.log", self._cores) as target:
                solo = solo_file(target, mix)
                seed = self._asked.seed + 100 * i
                found["curves"][mix] = curve.curve(target, mix, self._asked.seconds, solo, seed)
            print(report.table(report.curve_rows(found)), flush=True)
        if self._asked.out == paths.RESULTS:
            plots.draw_curves(found, report.PICTURES / "load-curve.png")
        for one in found["curves"].values():
            for each in one["points"]:
                each["held"] = each["held"][-1:]
        return found

    def _flat(self) -> dict[str, Any]:
        asked = self._asked
        with Target(FOLDER / "flat.log", self._cores, flat.SETTINGS) as target:
            solo = solo_file(target, flat.MIX)
            full = curve.capacity(target, flat.MIX, 8.0, asked.seed)
            rate, seconds = 1.5 * full["good"], 60 * asked.minutes
            found = flat.flat(target, asked.requests, rate, solo, asked.seed + 500, seconds)
        print(report.table(report.flat_rows(found)), flush=True)
        if asked.out == paths.RESULTS:
            plots.draw_flat(found, report.PICTURES / "load-flat.png")
        return found

    def _greedy(self) -> dict[str, Any]:
        with Target(FOLDER / "greedy.log", self._cores) as target:
            found = greedy.all_cases(target, 8.0, self._asked.seed + 700)
        print(report.table(report.greedy_rows(found)))
        print(report.table(report.equal_rows(found)), flush=True)
        return found

    def _sigterm(self) -> dict[str, Any]:
        asked = self._asked
        repetitions = sigterm.all_cases(
            self._cores, asked.repetitions, SIGTERM_RATE, asked.seed + 900, at_once=3
        )
        found = {"repetitions": repetitions, "rate": SIGTERM_RATE}
        print(report.table(report.sigterm_rows(found)))
        for each in repetitions:
            for line in each["lost"]:
                print(f"seed {each['seed']}: lost: {line}")
        return found


def main() -> None:
    asked = parse()
    names = asked.only.split(",")
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"--only takes {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    asked.out.mkdir(parents=True, exist_ok=True)
    ran = Run(asked)
    for name in names:
        ran.do(name)
    if asked.out == paths.RESULTS:
        pages.write()
    raise SystemExit(0 if ran.show() else 1)


if __name__ == "__main__":
    main()
