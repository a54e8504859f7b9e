"""The figures of `bench` as lines of text, and its times as a picture (SVG)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from predictors.cli.bench.summary import QUANTILES, TIMES
from predictors.cli.endpoint import plain

WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 240, 60, 30, 50
COLOURS = ("#1f77b4", "#d62728")


def load_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The table of one server."""
    yield (
        f"{report['url']}: {report['answered']} of {report['requests']} requests answered in "
        f"{report['seconds']:.1f} s"
    )
    tokens = f", {report['tokens_per_s']:.1f} tokens/s" if report["tokens_per_s"] else ""
    yield (
        f"{report['answered_per_s']:.2f} answers/s, goodput {report['goodput_per_s']:.2f}/s{tokens}"
    )
    heads = ("mean", *QUANTILES)
    yield f"{'ms':<10}" + "".join(f"{head:>12}" for head in heads)
    for name in (*TIMES, "lag"):
        spread = report[f"{name}_ms"]
        if spread is not None:
            yield f"{name:<10}" + "".join(f"{spread[head]:>12,.2f}" for head in heads)
    for status, count in report["errors"].items():
        words = report["error_words"].get(status)
        yield f"failed with {plain(status)}: {count}{f' ({words})' if words else ''}"


def ratio_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The table of a comparison."""
    yield f"{report['other']['url']} / {report['first']['url']}"
    yield f"{'figure':<14}{'ratio':>8}   95 % interval     rounds"
    for name, each in report["ratios"].items():
        low, high = each["interval_95"]
        rounds = " ".join(f"{ratio:.3f}" for ratio in each["rounds"])
        left_out = f"   ({each['rounds_left_out']} left out)" if each["rounds_left_out"] else ""
        yield f"{name:<14}{each['ratio']:>8.3f}   {low:.3f} to {high:.3f}   {rounds}{left_out}"
    yield f"({report['method']}; of equal servers each misses 1 once in 20 times)"


def load_plot(times: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """An SVG: for each kind of time the share of requests that took at most so long, a line per
    server. `times` has seconds by server and kind."""
    kinds = [name for name in TIMES if any(by[name] for by in times.values())]
    height = len(kinds) * (HEIGHT + GAP) + TOP + 20 * len(times)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * LEFT}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH + 2 * LEFT}" height="{height}" fill="white"/>',
    ]
    for row, url in enumerate(times):
        colour = COLOURS[row % len(COLOURS)]
        place = f'x="{LEFT}" y="{TOP - 10 + 20 * row}"'
        parts.append(f'<text {place} fill="{colour}">{escape(plain(url))}</text>')
    for number, kind in enumerate(kinds):
        top = TOP + 20 * len(times) + number * (HEIGHT + GAP)
        parts += _panel(kind, {url: by[kind] for url, by in times.items()}, top)
    return "\n".join([*parts, "</svg>\n"])


def _panel(kind: str, by_server: Mapping[str, Sequence[float]], top: int) -> Iterator[str]:
    most = max((max(values) for values in by_server.values() if values), default=0.0) or 1.0
    bottom = top + HEIGHT
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    yield f'<rect x="{LEFT}" y="{top}" {size} fill="none" stroke="#999"/>'
    for share in (0.0, 0.5, 0.95, 1.0):
        y = bottom - share * HEIGHT
        yield f'<text x="{LEFT - 40}" y="{y + 4:.1f}">{100 * share:.0f} %</text>'
        yield f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>'
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + part * WIDTH
        yield f'<text x="{x:.1f}" y="{bottom + 16}">{1000 * most * part:.4g}</text>'
    yield f'<text x="{LEFT + 8}" y="{top + 16}">{kind}, ms</text>'
    for row, values in enumerate(by_server.values()):
        ordered = sorted(values)
        points = [
            f"{LEFT + WIDTH * value / most:.1f},{bottom - HEIGHT * (i + 1) / len(ordered):.1f}"
            for i, value in enumerate(ordered)
        ]
        colour = COLOURS[row % len(COLOURS)]
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>'
