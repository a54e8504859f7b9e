"""What one run of the FLUX benchmark was asked and has found so far. Knows sections, time and the
file; measures nothing.

A section that no time is left for is left out and says so. Everything is written after each
section, so a run that is cut off leaves what it had.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.ceilings import Measured
from benchmarks.flux import floors as flux_floors
from benchmarks.flux import goals as flux_goals
from benchmarks.flux import report as flux_report
from benchmarks.flux.cases import Case, Row, Stages
from benchmarks.flux.random_weights import Configs
from predictors.models.flux.config import FluxConfig


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    device: torch.device
    changes: tuple[Configs, ...]
    """The checkpoint's size, as changes of the embedded one's."""
    sizes: tuple[str, ...]
    steps: tuple[int, ...]
    runs: int
    """Timed runs of the first case."""
    other_runs: int
    """Of each other one."""
    tiers: str
    slots: int
    """Pictures in the making at once, of ours."""
    only: frozenset[str]
    has_peer: bool
    backend: str
    """Of the peer's `torch.compile`."""
    budget_s: float
    out: Path
    trace: Path | None

    @property
    def first(self) -> Case:
        """The case that everything is about."""
        return self.case(self.sizes[0], self.steps[0])

    @property
    def cases(self) -> list[Case]:
        """Every size with every number of steps, `first` first."""
        return [self.case(size, steps) for size in self.sizes for steps in self.steps]

    def case(self, size: str, steps: int, *, model: str = "dev", batch: int = 1) -> Case:
        """Of one size as people write it."""
        width, _, height = size.partition("x")
        return Case(model, int(width), int(height), steps, batch)

    def as_json(self) -> dict[str, Any]:
        """Plain values, by name."""
        return {
            "sizes": self.sizes,
            "steps": self.steps,
            "runs": self.runs,
            "other_runs": self.other_runs,
            "tiers": self.tiers,
            "slots": self.slots,
            "only": sorted(self.only),
            "peer": self.has_peer,
            "backend": self.backend,
        }


class Journal:
    """The results of one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.found: dict[str, Any] = {
            "machine": flux_report.machine(options.device),
            "options": options.as_json(),
            "took_s": {},
            "left_out": [],
            "failed": {},
        }
        self.rows: list[Row] = []
        self.figures: list[dict[str, Any]] = []
        self.stages: list[Stages] = []
        self.measured: Measured | None = None
        self._began = time.perf_counter()

    def wants(self, *sections: str) -> bool:
        """Whether any of them was asked for."""
        return not self.options.only.isdisjoint(sections)

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Run it if there is time; what it returns is kept under its name. One that fails is kept
        as failed, and the next ones run."""
        began = time.perf_counter()
        if began - self._began > self.options.budget_s:
            print(f"{name}: left out, {self.options.budget_s:.0f} s are over", flush=True)
            self.found["left_out"].append(name)
            return
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - hours of a lent card are not lost to one section
            traceback.print_exc()
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            found = None
        if found is not None:
            self.found[name] = found
        self.found["took_s"][name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {self.found['took_s'][name]} s", flush=True)
        self.save()

    def add(self, row: Row, facts: FluxConfig) -> None:
        """A row of the table, with what follows from it."""
        self.rows.append(row)
        if self.measured is None:
            self.figures.append({})
            return
        text = facts.default_text_tokens
        image = row.case.width * row.case.height // facts.patch_pixels**2
        work = flux_floors.step(facts.shape, text, image)
        self.figures.append(flux_report.figures(row, work, text + image, self.measured.ceilings))

    def save(self) -> None:
        """Everything so far, into the file."""
        rows = [
            {**asdict(row), **own, "ratio_to_peer": flux_report.ratio(self.rows, row)}
            for row, own in zip(self.rows, self.figures, strict=True)
        ]
        goals = flux_goals.held(self.rows, self.stages, self.found)
        everything = {**self.found, "rows": rows, "stages": self.stages, "goals": goals}
        flux_report.write(self.options.out, everything)

    def print(self) -> None:
        """The tables."""
        if self.rows:
            print(f"\n{flux_report.table(self.rows, self.figures)}")
        if self.stages:
            print(f"\n{flux_report.stage_table(self.stages)}")
        if self.options.device.type == "cuda":
            goals = flux_goals.held(self.rows, self.stages, self.found)
            print(f"\n{flux_goals.as_text(goals)}")
        for name, error in self.found["failed"].items():
            print(f"FAILED {name}: {error}")
        print(f"\nwritten to {self.options.out}")
