"""The dashboard is current, legible, and asks only for series that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.observe.test_alerts import ROOT, known, promtool

__all__ = ["promtool"]
BOARD = json.loads((ROOT / "charts/predictors/dashboards/predictors.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_the_pictures_show_the_panels_as_they_are_now() -> None:
    check = [sys.executable, "-m", "tools.dashboard_pictures", "--check"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_shows_every_picture_and_says_what_it_is() -> None:
    page = (ROOT / "docs/dashboard.md").read_text()
    drawn = sorted((ROOT / "docs/pictures").glob("dashboard-*"))
    assert drawn
    assert all(path.stat().st_size <= 150_000 for path in drawn)
    assert sorted(re.findall(r"\]\(pictures/(.+)\)", page)) == [path.name for path in drawn]
    assert "not Grafana's own rendering" in " ".join(page.split())
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == rows


def test_every_panel_has_a_unit_and_a_description() -> None:
    assert len(PANELS) <= 33
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_the_objective_is_the_charts_until_another_is_typed() -> None:
    (chosen,) = [v for v in BOARD["templating"]["list"] if v["name"] == "objective"]
    shipped = yaml.safe_load((ROOT / "charts/predictors/alerts/values.yaml").read_text())
    assert float(chosen["query"]) == shipped["slo"]["objective"]


def test_every_line_is_named_by_labels_that_it_has() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = re.search(r"by \(([^)]*)\)", target["expr"])
            assert legend, panel["title"]
            if kept is not None:
                assert legend <= set(kept[1].split(", ")) - {"le"}, panel["title"]


def test_no_panel_names_a_metric_that_does_not_exist() -> None:
    named = {name for text in EXPRESSIONS for name in re.findall(r"predictors[_:][\w:]+", text)}
    assert named - known() == set()


def test_every_expression_is_promql(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"a:{i}", "expr": re.sub(r"\$__\w+", "1m", text).replace("$objective", "0.99")}
        for i, text in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "r.yaml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    run = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "r.yaml")], capture_output=True
    )
    assert run.returncode == 0, run.stderr
