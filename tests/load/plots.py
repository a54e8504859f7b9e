"""Small pictures of the load runs for docs/pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

DPI = 70


def draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """Goodput and latencies over the offered load, one column per mix."""
    curves = found["curves"]
    figure, axes = plt.subplots(2, len(curves), figsize=(4 * len(curves), 5.4), squeeze=False)
    for column, (mix, one) in enumerate(curves.items()):
        points = one["points"]
        xs = [100 * each["share"] for each in points]
        upper, lower = axes[0][column], axes[1][column]
        for name, label in (("good", "goodput"), ("refused", "refused")):
            upper.plot(xs, [each[name] for each in points], marker="o", label=label)
        upper.axhline(one["capacity"]["good"], color="grey", linestyle=":", label="capacity")
        upper.set(title=mix, ylabel="requests per second", ylim=(0, None))
        for name in ("p50_ms", "p95_ms", "p99_ms"):
            label = f"answers {name[:3]}"
            lower.plot(xs, [each[name] for each in points], marker="o", label=label)
        for label, values in (
            ("refusals p99", [each["refusal_p99_ms"] for each in points]),
            ("health p99", [each["probes"]["health"]["p99_ms"] for each in points]),
        ):
            lower.plot(xs, values, marker=".", linestyle="--", label=label)
        lower.set(xlabel="offered load, % of capacity", ylabel="ms", yscale="log")
    axes[0][0].legend(fontsize=7)
    axes[1][0].legend(fontsize=7)
    _save(figure, path)


def draw_flat(found: Mapping[str, Any], path: Path) -> None:
    """Memory, descriptors and threads over the requests."""
    held = found["held"]
    xs = [each["at_s"] for each in held]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7))
    for name, label in (("rss_mib", "RSS"), ("own_mib", "own")):
        left.plot(xs, [each[name] for each in held], marker="o", label=label)
    for name in ("fds", "threads"):
        right.plot(xs, [each[name] for each in held], marker="o", label=name)
    left.set(xlabel="requests", ylabel="MiB", ylim=(0, None))
    right.set(xlabel="requests", ylim=(0, None))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
