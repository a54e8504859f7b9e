"""Draws the bar charts of the README and the course, docs/pictures/*.svg, from benchmarks/results.
An SVG is text, so the test of generated files compares the data of a chart and not its pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, LABELS, NUMBERS = 760, 250, 110  # pixels: of all, of the column of labels, of the figures
BAR, ROW, HEAD = 16, 26, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 }
.note { font-size: 11px; fill: #57606a }
.peer { fill: #a8b1ba }
.here { fill: #1f6feb }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9da7b3 }
  .peer { fill: #6e7681 }
  .here { fill: #4c9aff }
}
"""


@dataclass(frozen=True)
class Bar:
    """A row of a chart: its label, its value, and true where it is this project's."""

    label: str
    value: float
    is_ours: bool = False


@dataclass(frozen=True)
class Group:
    """Bars on one scale, which begins at 0."""

    head: str
    unit: str
    bars: tuple[Bar, ...]


def results(name: str) -> Any:
    """The JSON of a run of benchmarks."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def figure(value: float, unit: str) -> str:
    """A number as the tables write it: three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f} {unit}"


def drawn(title: str, note: str, groups: Iterable[Group]) -> str:
    """The SVG of groups of bars, one below the other."""
    parts, y = [], 8
    for group in groups:
        longest = max(bar.value for bar in group.bars)
        parts.append(f'<text class="head" x="8" y="{y + 16}">{escape(group.head)}</text>')
        y += HEAD
        for bar in group.bars:
            length = max(1.0, bar.value / longest * (WIDTH - LABELS - NUMBERS))
            kind = "here" if bar.is_ours else "peer"
            label, value = escape(bar.label), figure(bar.value, group.unit)
            size = f'width="{length:.1f}" height="{BAR}"'
            parts += [
                f'<text x="{LABELS - 10}" y="{y + 13}" text-anchor="end">{label}</text>',
                f'<rect class="{kind}" x="{LABELS}" y="{y}" {size} rx="2"/>',
                f'<text x="{LABELS + length + 8:.1f}" y="{y + 13}">{value}</text>',
            ]
            y += ROW
        y += 10
    parts.append(f'<text class="note" x="8" y="{y + 8}">{escape(note)}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return "\n".join([head, *parts, "</svg>", ""])


def flux_bars(engines: Mapping[str, str]) -> tuple[Bar, ...]:
    """Seconds of one picture by the labels of engines, of the final run on one card."""
    case = {"model": "dev", "width": 1024, "height": 1024, "steps": 28, "batch": 1}
    rows = {
        row["engine"]: row["seconds"]["median"]
        for row in results("flux")["rows"]
        if row["case"] == case
    }
    return tuple(Bar(engines[e], rows[e], e.startswith("here")) for e in engines)


def token_bars(prompt: str) -> tuple[Bar, ...]:
    """Milliseconds per token of one caller."""
    run = results("qwen_vl")
    peer = {name.removeprefix("transformers "): case for name, case in run["peer"].items()}
    return (
        Bar("transformers, growing cache", peer[f"dynamic, 1 x {prompt}"]["tpot_ms"]),
        Bar("transformers, static, compiled", peer[f"static, 1 x {prompt}"]["tpot_ms"]),
        Bar("here", run["http"][f"1 x {prompt}"]["tpot_ms_mean"], is_ours=True),
    )


PICTURE = "FLUX.1-dev, one picture of 1024x1024 in 28 steps"
NOTE = "One NVIDIA H200, random weights at full size, medians; shorter is faster."


def speed() -> str:
    engines = {
        "diffusers compiled, decoder too": "diffusers, compiled",
        "here lossless": "here, lossless (bf16)",
        "here high": "here, high (fp8)",
        "here turbo": "here, turbo (fp8, 14 calls)",
    }
    groups = [
        Group(PICTURE, "s", flux_bars(engines)),
        Group("Qwen2.5-VL-3B, a token after a 1024x1024 picture", "ms", token_bars("1024x1024")),
    ]
    return drawn("Seconds per picture and milliseconds per token", NOTE, groups)


def compiling() -> str:
    engines = {
        "diffusers eager": "diffusers, eager",
        "diffusers compiled": "diffusers, blocks compiled",
        "here lossless": "here, one graph per step",
    }
    groups = [
        Group("Qwen2.5-VL-3B, a token of a text", "ms", token_bars("text")),
        Group(PICTURE, "s", flux_bars(engines)),
    ]
    return drawn("What compiling gives a language model and a picture model", NOTE, groups)


def copies() -> str:
    run = results("qwen_vl")["ours"]
    first = {row["rows"]: row["step_ms"] for row in run["decode steps"] if row["prompt"] == "text"}
    groups = [
        Group(
            f"A step of {row['rows']} {'sequence' if row['rows'] == 1 else 'sequences'}",
            "ms",
            (
                Bar("read, then launch the next step", row["step_ms"]),
                Bar("launch the next step, then read", first[row["rows"]], is_ours=True),
            ),
        )
        for row in run["read at once"]
    ]
    return drawn("Decode steps that wait for a copy to the host, and that do not", NOTE, groups)


def attention() -> str:
    cases = {
        "tower, full block, 1024x1024": "Vision tower, full block of a 1024x1024 picture",
        "prompt with 1024x1024": "Prompt with that picture",
        "tower, full block, 448x448": "Vision tower, full block of a 448x448 picture",
        "decode, 64 rows": "Decode step of 64 sequences",
    }
    kernels = ("FlashAttention 2", "cuDNN", "memory-efficient")
    measured = results("qwen_vl")["attention"]
    groups = []
    for case, head in cases.items():
        times = {kernel: measured[case][kernel]["ms"] for kernel in kernels}
        best = min(times, key=times.__getitem__)
        groups.append(Group(head, "ms", tuple(Bar(k, times[k], k == best) for k in kernels)))
    note = "One NVIDIA H200, Qwen2.5-VL-3B's shapes, the kernel alone; the fastest is blue."
    return drawn("Attention by three kernels that torch carries", note, groups)


def files() -> dict[Path, str]:
    """Every chart, by its path."""
    return {
        PICTURES / "speed.svg": speed(),
        PICTURES / "course-compile.svg": compiling(),
        PICTURES / "course-copies.svg": copies(),
        PICTURES / "course-attention.svg": attention(),
    }
