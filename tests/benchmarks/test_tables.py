"""Tables of docs/performance.md and the README are those that benchmarks/results give, and the
prose beside them agrees."""

from __future__ import annotations

import re

import pytest

from benchmarks import journal as pages
from benchmarks.common import journal, paths
from benchmarks.common.goals import Goal, goal_cells
from benchmarks.common.tables import columns, markdown
from benchmarks.flux import tables as flux
from benchmarks.qwen_vl import tables as qwen_vl

PAGE = (paths.ROOT / "docs/performance.md").read_text()
README = (paths.ROOT / "README.md").read_text()
FLUX, HEADLINE = journal.results("flux"), journal.results("flux_headline")
TIERS, PLANS = journal.results("flux_tiers"), journal.results("flux_turbo_plans")


@pytest.mark.parametrize("page", [PAGE, README], ids=["performance", "readme"])
def test_the_tables_of_a_page_are_what_was_measured(page: str) -> None:
    assert pages.written(page) == page


def test_every_table_stands_once_on_a_page() -> None:
    found = sorted(journal.places(PAGE) + journal.places(README))
    assert found == sorted((model, name) for model, made in pages.MODELS.items() for name in made)


def test_a_table_whose_figures_are_missing_says_so_on_the_page() -> None:
    for tables in (flux.OF_A_RUN, qwen_vl.TABLES):
        for name, make in tables.items():
            assert journal.table(make, {}) == journal.MISSING, name
        assert journal.as_text(tables, {}) == ""


def test_a_page_keeps_its_prose_and_is_the_same_when_written_twice() -> None:
    page = "a\n<!-- flux goals -->\nold\n<!-- end -->\nb\n<!-- qwen_vl memory -->\n<!-- end -->\n"
    found = {"goals": [Goal("speed", 2.0, is_least=True).result(3.0)]}
    models = {"flux": (flux.ON_PAGES, found), "qwen_vl": (qwen_vl.ON_PAGES, {})}
    written = journal.written(page, models)
    assert "old" not in written
    assert "| speed | 3 | at least 2 | yes |" in written
    assert f"b\n<!-- qwen_vl memory -->\n{journal.MISSING}\n<!-- end -->\n" in written
    assert journal.written(written, models) == written


def test_rows_are_lines_of_markdown_or_padded_columns() -> None:
    rows = [("a", "b"), ("long", "c")]
    assert markdown(rows) == "| a | b |\n|---|---|\n| long | c |"
    assert columns(rows) == "a     b\nlong  c"
    assert markdown([]) == ""


def test_a_goal_is_held_from_its_side_and_names_what_was_wished_for() -> None:
    low = Goal("latency", 30.0, wish=18.0).result(20.0)
    assert (low["held"], low["wish_held"], low["at"]) == (True, False, "most")
    high = Goal("rate", 60.0, is_least=True, other=36.7).result(50.0)
    assert (high["held"], high["other"]) == (False, 36.7)
    assert "wish" not in high
    assert goal_cells(high) == ("rate", "50", "at least 60", "**no**")


# -- prose -----------------------------------------------------------------------------------------
def test_the_readme_names_the_goal_that_was_missed() -> None:
    missed = [goal["what"] for goal in FLUX["goals"] if not goal["held"]]
    assert "here lossless, times faster than diffusers compiled" in missed
    assert "<!-- flux readme -->" in README
    assert re.search(r"1\.25 .*not reached", README, re.DOTALL)


def test_the_measured_card_is_the_one_that_is_named() -> None:
    for found in (FLUX, HEADLINE):
        assert found["machine"]["gpu"] == "NVIDIA H200"
    assert TIERS["hardware"] == "NVIDIA H200"
    for text in (PAGE, README):
        assert "NVIDIA H200" in text


def test_all_measured_latents_are_finite() -> None:
    assert all(each["finite"] for each in FLUX["accuracy"]["latents"].values())


def test_the_gain_of_the_step_alone_stands_beside_that_of_the_whole_picture() -> None:
    peer, ours = flux.timed(FLUX, flux.BEST_PEER), flux.timed(FLUX, "here lossless")
    step = peer["step_ms"]["median"] / ours["step_ms"]["median"]
    without = [
        each["seconds"]["median"] - min(e["median"] for e in each["notes"]["encode_s"].values())
        for each in (peer, ours)
    ]
    assert f"the step alone {step:.2f}x" in PAGE
    assert f"without the PNG on either side {without[0] / without[1]:.2f}x" in PAGE


def test_turbo_is_measured_with_the_plan_that_serves() -> None:
    (turbo,) = (way for way in PLANS["ways"] if way["name"] == "turbo")
    assert turbo["calls"] == flux.timed(FLUX, "here turbo")["passes"]
    assert turbo["calls"] == TIERS["tiers"]["turbo"]["model_calls_per_picture"]


def test_the_fp8_paragraph_states_the_measured_interval() -> None:
    found = journal.results("qwen_vl_fp8")
    low, high = found["difference_interval_95"]
    assert low > found["goal_points"]
    assert f"95 % interval {low:.3f} to +{high:.3f}" in PAGE
    right = {name: each["right"] for name, each in found["shares"].items()}
    assert set(right.values()) == {2394}, right
    assert "2,394 right both times" in PAGE
    assert found["same_words"] == found["scenes"] == 2400
