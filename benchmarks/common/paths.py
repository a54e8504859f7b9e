"""Where the benchmarks read and write: the repository, the committed results, the embedded
checkpoints. Absolute, so that a benchmark may be started from anywhere.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "bench"
"""Logs, and the results of toy runs."""
SHAPES_FLUX = ROOT / "checkpoints" / "shapes-flux"
SHAPES_QWEN_VL = ROOT / "checkpoints" / "shapes-qwen-vl"
