"""Values of the FLUX benchmark: a case to draw, its timed runs, a row of the table, the stages of a
picture, and the rates that follow from a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.ceilings import Ceilings, Operations
from benchmarks.common.stats import Spread
from benchmarks.qwen_vl.cases import Pictures

PROMPT = "a large red circle to the left of a small blue square on a white background"
SEED = 7
PEER = "diffusers"
GUIDANCE = 3.5
KONTEXT = "kontext"


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    """dev, schnell or kontext."""
    width: int
    height: int
    steps: int
    batch: int = 1
    strength: float | None = None
    """Of an edit of `source_pixels`; None draws from the prompt alone."""
    adapter: str = ""
    """Name of one that is loaded; empty for none."""

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def is_reference(self) -> bool:
        """The picture is read beside the prompt."""
        return self.model == KONTEXT

    @property
    def passes(self) -> int:
        """Steps that are run: an edit leaves the first ones out."""
        return self.steps if self.strength is None else int(self.steps * self.strength)

    def __str__(self) -> str:
        edit = "" if self.strength is None else f", strength {self.strength:g}"
        adapter = f", adapter {self.adapter}" if self.adapter else ""
        return f"{self.model} {self.size}, {self.steps} steps, batch {self.batch}{edit}{adapter}"


def source_pixels(width: int, height: int) -> NDArray[np.uint8]:
    """The picture that edits start from, RGB (height, width, 3)."""
    return Pictures(width, height).pixels(SEED)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One run of a case: all its pictures from embeddings to encoded bytes."""

    seconds: float
    """Encoding included, at the faster of the levels where there are several."""
    step_ms: list[float]
    """Device time between the ends of neighbouring steps."""
    encode_s: dict[str, float]
    """Seconds of encoding alone, by PNG writer and level."""
    pixels: list[Any]
    """uint8 (height, width, 3) each."""


@dataclass(frozen=True, slots=True)
class Row:
    engine: str
    case: Case
    seconds: Spread
    step_ms: Spread | None
    """None where no run had two neighbouring steps."""
    passes: int
    """Forward passes of the transformer per picture: fewer than steps where some are skipped."""
    is_fp8: bool
    peak_bytes: int | None
    """Most memory while drawing, this engine's weights included, others' not."""
    joules: float | None = None
    """Energy of the card per picture; None where its driver counts none."""
    notes: dict[str, Any] = field(default_factory=dict)


def summed_up(
    engine: str,
    case: Case,
    runs: list[Drawn],
    *,
    passes: int,
    is_fp8: bool = False,
    peak_bytes: int | None = None,
    joules: float | None = None,
) -> Row:
    """The row of timed runs; `joules` are those of all of them together."""
    encoders = runs[0].encode_s
    gaps = [gap for run in runs for gap in run.step_ms]
    return Row(
        engine=engine,
        case=case,
        seconds=Spread.of([run.seconds for run in runs]),
        step_ms=Spread.of(gaps) if gaps else None,
        passes=passes,
        is_fp8=is_fp8,
        peak_bytes=peak_bytes,
        joules=None if joules is None else joules / (len(runs) * case.batch),
        notes={
            "encode_s": {name: Spread.of([r.encode_s[name] for r in runs]) for name in encoders}
        },
    )


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds of each stage of one picture, alone, by one engine."""

    engine: str
    case: Case
    ms: dict[str, Spread | None]


def figures(row: Row, work: Operations, tokens: int, ceilings: Ceilings) -> dict[str, Any]:
    """Rates and shares of a row. `work` is one pass of one picture.

    The share is of the whole picture, everything but the transformer's floor counted as loss; the
    rate counts the passes that were made.
    """
    passes = row.passes * row.case.batch
    floor_s = passes * ceilings.floor_s(work, tokens, is_fp8=row.is_fp8)
    return {
        "ms_per_step": 1e3 * row.seconds.median / row.case.steps / row.case.batch,
        "tflops": passes * work.total / row.seconds.median / 1e12,
        "floor_s": floor_s,
        "share_of_floor": floor_s / row.seconds.median,
    }


def best_peer(rows: Iterable[Row], case: Case) -> Row | None:
    peers = [row for row in rows if row.case == case and row.engine.startswith(PEER)]
    return min(peers, key=lambda row: row.seconds.median, default=None)


def ratio(rows: Iterable[Row], row: Row) -> float | None:
    """The fastest peer's seconds over this row's, on the same case."""
    peer = best_peer(rows, row.case)
    return None if peer is None else peer.seconds.median / row.seconds.median
