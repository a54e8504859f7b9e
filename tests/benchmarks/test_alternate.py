"""The comparison of two checkouts: whose turn it is, what a ratio means, and a real pair of this
tree with itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.alternate import __main__ as alternate
from benchmarks.alternate.families import Options, Run, Tree
from benchmarks.common import paths
from predictors.cli.bench.intervals import ratio_interval


def runs_of(tree: str, seconds: float, log: list[str]) -> Mapping[str, Run]:
    def run(pair: int) -> Mapping[str, float]:
        log.append(f"{tree} {pair}")
        return {"s": seconds}

    return {"case": run}


def test_trees_take_turns_and_who_begins_changes() -> None:
    log: list[str] = []
    trees = {"parent": runs_of("parent", 2.0, log), "this": runs_of("this", 1.0, log)}
    comparison = alternate.Comparison(trees)
    comparison.warm()
    comparison.pair(0)
    comparison.pair(1)
    assert log == ["parent -1", "this -1", "parent 0", "this 0", "this 1", "parent 1"]
    assert comparison.figures == {"case, s": {"parent": [2.0, 2.0], "this": [1.0, 1.0]}}


def test_a_ratio_above_one_is_a_slower_tree() -> None:
    slower = alternate.compared([1.0, 1.0, 1.0], [1.05, 1.06, 1.05], limit=1.03)
    assert slower["ratio_median"] == 1.05
    assert not slower["not_slower"]
    same = alternate.compared([1.0, 1.0, 1.0], [1.001, 0.999, 1.0], limit=1.03)
    assert same["not_slower"]
    assert not alternate.compared([1.0], [0.5], limit=1.03)["not_slower"], "one pair proves nothing"


def test_the_interval_of_a_ratio_is_students() -> None:
    # logarithms -0.01, 0, 0.01: mean 0, deviation 0.01, t of 2 degrees 4.303
    low, high = ratio_interval([0.990050, 1.0, 1.010050])
    assert high == pytest.approx(1 + 4.303 * 0.01 / 3**0.5, abs=4e-4)
    assert low == pytest.approx(1 / high, abs=1e-5)


def test_the_table_has_a_line_per_figure() -> None:
    each = alternate.compared([1.0, 2.0], [1.0, 2.0], limit=1.03)
    head, line = alternate.table({"flux": {"high, s": each}}).splitlines()
    assert head.startswith("figure")
    assert line.startswith("flux: high, s")
    assert line.endswith("yes")


def test_a_tree_with_the_old_layout_has_its_own_modules(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "echo_ours.py").touch()
    names = ("benchmarks.serving.echo_ours", "benchmarks.echo_ours")
    assert Tree("parent", tmp_path).module(*names) == names[1]
    assert Tree("this", paths.ROOT).module(*names) == names[0]
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        Tree("this", paths.ROOT).module("benchmarks.nothing")


def test_this_tree_is_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    out = tmp_path / "found.json"
    asked = ["--parent", str(paths.ROOT), "--only", "host", "--pairs", "2", "--out", str(out)]
    alternate.main(asked)
    report = json.loads(out.read_text())
    assert report["failed"] == {}
    figures = report["results"]["host"]
    assert "turnover, us, 64 waiting" in figures
    assert all(len(each["ratios"]) == 2 for each in figures.values())
    assert "host: turnover" in capsys.readouterr().out


def test_a_family_that_fails_is_told_and_the_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> Mapping[str, Run]:
        raise RuntimeError("no card")

    monkeypatch.setitem(alternate.FAMILIES, "flux", broken)  # type: ignore[arg-type]
    out = tmp_path / "found.json"
    code = alternate.main(["--parent", ".", "--only", "flux", "--out", str(out)])
    assert code == 1
    assert "no card" in json.loads(out.read_text())["failed"]["flux"]


def test_small_flux_is_drawn_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = Options("cpu", is_small=True)
    with ExitStack() as stack:
        runs = alternate.FAMILIES["flux"](stack, Tree("this", paths.ROOT), options)
        assert set(runs) == {"lossless", "turbo"}
        assert runs["turbo"](0)["s"] > 0
