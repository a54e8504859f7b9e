"""Options and results of one run of the FLUX benchmark: `benchmarks.common.run` with rows, stages
and the rates and goals that follow from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.ceilings import Measured
from benchmarks.common.machine import machine
from benchmarks.common.run import BenchmarkRun, plain
from benchmarks.flux import floors, goals
from benchmarks.flux.cases import Case, Row, Stages, figures, ratio
from benchmarks.flux.random_weights import Configs
from predictors.models.flux.config import FluxConfig


@dataclass(frozen=True, slots=True)
class FluxOptions:
    device: torch.device
    changes: tuple[Configs, ...]
    """The checkpoint's size, as changes of the embedded one's."""
    sizes: tuple[str, ...]
    steps: tuple[int, ...]
    runs: int
    """Timed runs of the first case."""
    other_runs: int
    """Timed runs of each other case."""
    tiers: str
    slots: int
    """Pictures that our engine draws at once."""
    only: frozenset[str]
    has_peer: bool
    backend: str
    """Of the peer's `torch.compile`."""
    trace: Path | None

    @property
    def first(self) -> Case:
        """The case with stages, traces and the most runs."""
        return self.case(self.sizes[0], self.steps[0])

    @property
    def cases(self) -> list[Case]:
        """Every size with every number of steps, `first` first."""
        return [self.case(size, steps) for size in self.sizes for steps in self.steps]

    def case(self, size: str, steps: int, *, model: str = "dev", batch: int = 1) -> Case:
        """`size` is WIDTHxHEIGHT."""
        width, _, height = size.partition("x")
        return Case(model, int(width), int(height), steps, batch)

    def as_json(self) -> dict[str, Any]:
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


class FluxRun(BenchmarkRun):
    def __init__(self, options: FluxOptions, budget_s: float, out: Path) -> None:
        super().__init__(
            out, budget_s, machine=machine(device=str(options.device)), options=options.as_json()
        )
        self.options = options
        self.rows: list[Row] = []
        self.figures: list[dict[str, Any]] = []
        self.stages: list[Stages] = []
        self.measured: Measured | None = None

    def wants(self, *sections: str) -> bool:
        return not self.options.only.isdisjoint(sections)

    def add(self, row: Row, config: FluxConfig) -> None:
        """Keep a row and the figures that follow from it, and print it: a run may be cut off."""
        print(f"  {row.engine}: {row.seconds.median:.3f} s", flush=True)
        self.rows.append(row)
        if self.measured is None:
            self.figures.append({})
            return
        text = config.default_text_tokens
        image = row.case.width * row.case.height // config.patch_pixels**2
        work = floors.step(config.shape, text, image)
        self.figures.append(figures(row, work, text + image, self.measured.ceilings))

    def results(self) -> dict[str, Any]:
        rows = [
            {**asdict(row), **own, "ratio_to_peer": ratio(self.rows, row)}
            for row, own in zip(self.rows, self.figures, strict=True)
        ]
        found = plain({**self.found, "rows": rows, "stages": self.stages})
        return found | {"goals": goals.held(found)}
