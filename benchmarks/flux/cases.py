"""What is drawn, and what is told about it: a case, a row of the table, a row of stages. Values
only; knows nobody who draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.clock import GIB, Spread

PROMPT = "a large red circle to the left of a small blue square on a white background"
SEED = 7
GUIDANCE = 3.5


@dataclass(frozen=True, slots=True)
class Case:
    """Some pictures of one size, drawn at once."""

    model: str
    """dev or schnell."""
    width: int
    height: int
    steps: int
    batch: int = 1

    @property
    def size(self) -> str:
        """As people write it."""
        return f"{self.width}x{self.height}"

    def __str__(self) -> str:
        return f"{self.model} {self.size}, {self.steps} steps, batch {self.batch}"


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
    """One case by one engine."""

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
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_gib(self) -> float | None:
        """In GiB."""
        return None if self.peak_bytes is None else self.peak_bytes / GIB


def summed_up(
    engine: str,
    case: Case,
    runs: list[Drawn],
    *,
    passes: int,
    is_fp8: bool = False,
    peak_bytes: int | None = None,
) -> Row:
    """The row of a case's repeats."""
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
