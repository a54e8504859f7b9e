"""Draws docs/pictures/dashboard-*.png with matplotlib: one picture per row of the dashboard, from
what a real Prometheus recorded of a real server under the mixed load of tests/observe.

`python -m tools.dashboard_pictures` records for a minute and a half and draws. `--check` fails if a
picture does not show the present panels and expressions. A row without data on this machine (the
GPU's on a CPU) is not drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo as PngText

from tools.dashboard import FILE, ROWS, Panel, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.observe.test_live_dashboard import Observed

FOLDER = Path(__file__).resolve().parents[1] / "docs/pictures"
RECORDED = FILE.parents[1] / "alerts/recording.yaml"
STEADY_S, BUSY_S, AFTER_S = 45.0, 30.0, 10.0
SETTINGS = {"PREDICTORS_QUEUE_CAPACITY": "4", "PREDICTORS_FLUX_SLOTS": "2"}
INK, FAINT, PAPER, SHEET = "#24292f", "#d8dee4", "#ffffff", "#f6f8fa"
UNITS = {"reqps": "requests/s", "none": "", "s": "", "percentunit": ""}
Line = tuple[str, list[float], list[float]]
SHOWN = "shown"  # key of the PNG text that holds the digest


def file_of(row: str) -> Path:
    """Where a row's picture is."""
    return FOLDER / f"dashboard-{re.sub('[^a-z]+', '-', row.lower())}.png"


def digest(row: str) -> str:
    """A hash of the titles, units and expressions of a row."""
    found = [panel for panel in panels() if panel["title"] in {p.title for p in ROWS[row]}]
    asked = [[p["title"], p["fieldConfig"], p["targets"]] for p in found if p["type"] != "row"]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def is_current(row: str) -> bool:
    """True if the row's picture was drawn from the row's present panels."""
    path = file_of(row)
    if not path.exists():
        return False
    with Image.open(path) as picture:
        return picture.info.get(SHOWN) == digest(row)


def number(value: float, unit: str) -> str:
    """A tick's label."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "bytes":
        return f"{value / 2**30:.3g} GiB"
    if unit == "s" and value and value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if unit == "s" else f"{value:.4g}"


def lines(observed: Observed, panel: Panel) -> list[Line]:
    """Legend, seconds since the beginning and values of each line that is not 0 throughout."""
    from tests.observe.test_live_dashboard import as_grafana_asks

    found = []
    for expression, legend in ((panel.expression, panel.legend), *panel.also):
        asked = as_grafana_asks(observed, expression)
        for series in observed.prometheus.query_range(asked, observed.began_s, observed.ended_s):
            labels = series["metric"]
            name = re.sub(r"{{(\w+)}}", lambda at, of=labels: of.get(at[1], ""), legend)
            at_s = [float(moment) - observed.began_s for moment, _ in series["values"]]
            values = [float(text) for _, text in series["values"]]
            found.append((name.strip(), at_s, values))
    moving = [line for line in found if any(value and math.isfinite(value) for value in line[2])]
    return sorted(moving or found)


def draw_panel(axes: Axes, panel: Panel, found: list[Line], span_s: float) -> None:
    """One graph with its own title, unit and legend."""
    for name, at_s, values in found:
        axes.plot(at_s, values, linewidth=1.4, label=name, solid_capstyle="round")
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, span_s)
    if all(not value for _, _, values in found for value in values):
        axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(lambda value, _: number(value, panel.unit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.set_ylabel(
        UNITS.get(panel.unit, panel.unit.removeprefix("suffix:")), fontsize=8, color=INK
    )
    axes.grid(color=FAINT, linewidth=0.6)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor(PAPER)
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.1), ncols=1 if len(found) < 5 else 2, fontsize=7.5,
        frameon=False, handlelength=1.2, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip


def draw(row: str, observed: Observed) -> bool:
    """Write a row's picture; False where there is nothing to draw."""
    from matplotlib.figure import Figure

    data = [lines(observed, panel) for panel in ROWS[row]]
    if not any(data):
        return False
    legend_lines = max(math.ceil(len(each) / (1 if len(each) < 5 else 2)) for each in data)
    figure = Figure(figsize=(13, 3.1 + 0.17 * legend_lines), facecolor=SHEET, layout="constrained")
    grid: Any = figure.subplots(1, len(data), squeeze=False)
    for axes, panel, each in zip(grid[0], ROWS[row], data, strict=True):
        draw_panel(axes, panel, each, observed.ended_s - observed.began_s)
    figure.suptitle(row, x=0.008, ha="left", fontsize=12, color=INK)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(file_of(row), dpi=90)
    with Image.open(file_of(row)) as picture:
        small = picture.convert("RGB").quantize(dither=Image.Dither.NONE)
    text = PngText()
    text.add_text(SHOWN, digest(row))
    small.save(file_of(row), optimize=True, pnginfo=text)
    return True


def record() -> None:
    """Serve, load, scrape, and draw every row that has data."""
    from tests.observe.clients import Clients
    from tests.observe.live import Live
    from tests.observe.load import mixed_load
    from tests.observe.prometheus import Prometheus
    from tests.observe.test_live_dashboard import POD, Observed

    with tempfile.TemporaryDirectory() as name, Live(Path(name) / "server.log", SETTINGS) as live:
        live.wait_warm()
        watching = Prometheus(Path(name), {live.address: POD}, [RECORDED])
        with watching as prometheus, Clients(live) as clients:
            prometheus.wait_scraped()
            began_s = time.time()
            for seconds, callers in ((STEADY_S, 1), (BUSY_S, 2)):
                with mixed_load(clients, callers):
                    threading.Event().wait(seconds)
            live.wait_idle()
            threading.Event().wait(AFTER_S)
            ended_s = prometheus.wait_scraped()
            observed = Observed(live, prometheus, clients.seen, began_s, ended_s, [], [])
            for row in ROWS:
                print(f"{row}: {'drawn' if draw(row, observed) else 'no data here'}")


def main() -> int:
    """Draw, or check what is drawn; returns the exit code."""
    if "--check" not in sys.argv[1:]:
        record()
        return 0
    old = [row for row in ROWS if file_of(row).exists() and not is_current(row)]
    missing = [row for row in ROWS if row != "GPU" and not file_of(row).exists()]
    print("\n".join(f"{row}: run `make dashboard-pictures`" for row in old + missing))
    return 1 if old or missing else 0


if __name__ == "__main__":
    sys.exit(main())
