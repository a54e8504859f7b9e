"""The dashboard is what Grafana's own published types say a dashboard is: fields, their types and
their choices, by TypeScript's compiler. Skipped with a word where npm has no packages to give."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.observe.test_dashboard import BOARD

PACKAGES = ("@grafana/schema@13.2.3", "typescript@7.0.2")
# a row would pass for a panel, so each is held to its own type; a panel's options to the graph's
SOURCE = """
import type {{ Dashboard, Panel, RowPanel }} from '@grafana/schema';
import type {{ FieldConfig, Options }} from
  '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
export const rows: RowPanel[] = {rows};
export const graphs: Panel<Options, FieldConfig>[] = {graphs};
export const board: Dashboard = {board};
"""
FLAGS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")

Errors = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def errors_of(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """`errors_of(board)`: what the compiler has to say, nothing when all is well."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder: Path = tmp_path_factory.mktemp("schema")
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder]
    done = subprocess.run([*install, *PACKAGES], capture_output=True, text=True, timeout=150)
    if done.returncode != 0:
        pytest.skip(f"npm has no {' and no '.join(PACKAGES)}: {done.stderr[-200:]}")

    def compiled(board: dict[str, Any]) -> str:
        kinds: dict[bool, list[Any]] = {True: [], False: []}
        for panel in board["panels"]:
            kinds[panel["type"] == "row"].append(panel)
        parts = {"rows": kinds[True], "graphs": kinds[False], "board": board | {"panels": []}}
        text = SOURCE.format(**{name: json.dumps(part) for name, part in parts.items()})
        (folder / "board.ts").write_text(text)
        command = [folder / "node_modules/.bin/tsc", *FLAGS, "board.ts"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert (run.returncode != 0) == bool(run.stdout), run.stdout + run.stderr
        return run.stdout

    return compiled


def test_grafanas_types_find_nothing_to_say(errors_of: Errors) -> None:
    assert errors_of(BOARD) == ""


MISTAKES: dict[str, Callable[[dict[str, Any]], object]] = {
    "titel": lambda board: board.update(titel="Vision Predictors"),
    "DashboardCursorSync": lambda board: board.update(graphTooltip=7),
    "datasources": lambda board: board["templating"]["list"][0].update(type="datasources"),
    "collapsed": lambda board: board["panels"][0].pop("collapsed"),
    "GridPos": lambda board: board["panels"][1]["gridPos"].pop("w"),
    "units": lambda board: board["panels"][1]["fieldConfig"]["defaults"].update(units="s"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(errors_of: Errors, name: str) -> None:
    board = deepcopy(BOARD)
    MISTAKES[name](board)
    assert name in errors_of(board)
