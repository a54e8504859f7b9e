"""Every GPU figure that docs/performance.md and the README put in a table is the one in
benchmarks/results: each row is made anew from the JSON and looked for, and nothing else may be in
the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl import tables as qwen_vl_journal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/performance.md").read_text()
README = (ROOT / "README.md").read_text()


def results(name: str) -> dict[str, Any]:
    """What one benchmark wrote."""
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found


FLUX, TIERS = results("flux"), results("flux_tiers")
HEADLINE, PLANS = results("flux_headline"), results("flux_turbo_plans")
FIRST = {"model": "dev", "width": 1024, "height": 1024, "steps": 28, "batch": 1}


def table(text: str, head: str) -> list[str]:
    """The rows below the only table whose first line begins with `head`."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith(head)]
    assert len(heads) == 1, f"{head}: {len(heads)} tables"
    rows = []
    for line in lines[heads[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def timed(engine: str, case: dict[str, Any] = FIRST) -> dict[str, Any]:
    """One row of the clock."""
    (found,) = (r for r in FLUX["rows"] if r["engine"] == engine and r["case"] == case)
    return dict(found)


def clock_rows() -> Iterator[str]:
    """As the page has them: seconds, spread, rates, memory, ratio."""
    for each in FLUX["rows"]:
        case, seconds = each["case"], each["seconds"]
        batch = f", {case['batch']} pictures" if case["batch"] > 1 else ""
        calls = "" if each["passes"] == case["steps"] else f" ({each['passes']} calls)"
        yield row(
            f"{case['model']} {case['width']}x{case['height']}, {case['steps']} steps{batch}",
            each["engine"] + calls,
            f"{seconds['median']:.3f}",
            f"{seconds['least']:.3f} to {seconds['largest']:.3f}",
            f"{each['ms_per_step']:.1f}",
            f"{each['tflops']:.0f}",
            f"{100 * each['share_of_floor']:.0f} %",
            f"{each['peak_bytes'] / 2**30:.1f}",
            f"{each['ratio_to_peer']:.2f}",
        )


def stage_rows() -> Iterator[str]:
    """One stage of the engines side by side; `-` where an engine has no such stage."""
    by_engine = {each["engine"]: each["ms"] for each in FLUX["stages"]}
    names = list(dict.fromkeys(name for ms in by_engine.values() for name in ms))
    for name in names:
        cells = [ms.get(name) for ms in by_engine.values()]
        if any(cells):
            yield row(name, *("-" if ms is None else f"{ms['median']:.1f}" for ms in cells))


def goal_rows() -> Iterator[str]:
    """What was asked for, reached or not."""
    for goal in FLUX["goals"]:
        is_held = goal["measured"] >= goal["limit"]
        if goal["at"] == "most":
            is_held = goal["measured"] <= goal["limit"]
        asked = f"at {goal['at']} {goal['limit']:.3g}"
        verdict = "yes" if is_held else "**no**"
        yield row(goal["what"], f"{goal['measured']:.3f}", asked, verdict)


def headline_rows() -> Iterator[str]:
    """The seed's own comparison."""
    for each in HEADLINE["headline"]:
        case, by = each["case"], each["by"]
        eager, compiled = by["diffusers eager"], by["diffusers compiled"]
        before, after = eager["step_ms"]["median"], compiled["step_ms"]["median"]
        long_before, long_after = eager["derived_50_steps_s"], compiled["derived_50_steps_s"]
        yield row(
            f"{case['width']}x{case['height']}, batch {case['batch']}",
            f"{before:.1f}",
            f"{after:.1f}",
            f"+{100 * (before / after - 1):.0f} %",
            f"{long_before:.2f}",
            f"{long_after:.2f}",
            f"+{100 * (long_before / long_after - 1):.0f} %",
        )


def velocity_rows() -> Iterator[str]:
    """Distances of one forward."""
    for step, by in FLUX["accuracy"]["velocity"].items():
        if step == "verdict":
            continue
        for reference, distances in by.items():
            names = ("diffusers eager", "diffusers compiled", "here lossless", "here high")
            cells = (f"{distances[n]:.4f}" if n in distances else "-" for n in names)
            yield row(f"{step}, {reference}", *cells)


def latent_rows() -> Iterator[str]:
    """Distances after all steps."""
    for engine, found in FLUX["accuracy"]["latents"].items():
        assert found["finite"]
        yield row(engine, f"{found['to diffusers eager']:.4f}", f"{found['to here lossless']:.4f}")


def tier_rows() -> Iterator[str]:
    """Quality over held-out prompts."""
    for name, tier in TIERS["tiers"].items():
        paired = ("-",) * 4
        if name != "lossless":
            low, high = tier["difference_interval_95"]
            paired = (
                f"{tier['difference_points']:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{tier['only_lossless_right']} / {tier['only_this_right']}",
                f"{tier['psnr_db_mean']:.1f} ({tier['psnr_db_5th_percentile']:.1f})",
                f"{tier['distance_mean']:.3f} ({tier['distance_95th_percentile']:.3f})",
            )
        calls = f"{tier['model_calls_per_picture']:.0f}"
        yield row(name, calls, f"{100 * tier['share']:.2f} %", *paired)


def plan_rows() -> Iterator[str]:
    """Every plan with turbo's number of calls."""
    ways = PLANS["ways"]
    (turbo,) = (way for way in ways if way["name"] == "turbo")
    for way in ways:
        if way["calls"] == turbo["calls"] or way["name"] in {"all 28", "growing gaps"}:
            yield row(
                way["name"],
                str(way["calls"]),
                f"`{way['called']}`" if way["called"] else "-",
                f"{way['to_all_calls_mean']:.4f}",
                f"{way['to_all_calls_95_percent']:.4f}",
                f"{way['to_fine_mean']:.4f}",
                str(way["right"]),
            )


def start_rows() -> Iterator[str]:
    """Cold beside warm."""
    cold, warm = FLUX["start"]["cold"], FLUX["start"]["warm"]
    for name in ("import_s", "load_s", "warm_s", "first_picture_s", "process_s"):
        label = name.removesuffix("_s").replace("_", " ")
        yield row(label, f"{cold[name]:.2f}", f"{warm[name]:.2f}")
    for name in ("capture", "compile"):
        yield row(f"phase {name}", f"{cold['phases'][name]:.2f}", f"{warm['phases'][name]:.2f}")
    for name in ("compiled", "cached"):
        numbers = (f"{start['phases'][name]:.0f}" for start in (cold, warm))
        yield row(f"kernels {name}", *numbers)


def readme_rows() -> Iterator[str]:
    """The four that people look for."""
    best = timed("diffusers compiled, decoder too")["seconds"]["median"]
    for engine, told in (
        ("diffusers compiled, decoder too", "diffusers 0.42, compiled, decoder too"),
        ("here lossless", "here, `lossless` (bf16)"),
        ("here high", "here, `high` (fp8)"),
        ("here turbo", "here, `turbo` (fp8, 14 of 28 steps call the model)"),
    ):
        seconds = timed(engine)["seconds"]["median"]
        yield row(told, f"{seconds:.2f} s", f"{best / seconds:.2f}")


TABLES = {
    "| case | engine | s |": clock_rows,
    "| stage, ms |": stage_rows,
    "| goal |": goal_rows,
    "| the seed's case |": headline_rows,
    "| velocity |": velocity_rows,
    "| latents |": latent_rows,
    "| tier | calls |": tier_rows,
    "| plan | calls |": plan_rows,
    "| start, s |": start_rows,
}


@pytest.mark.parametrize("head", TABLES)
def test_a_gpu_table_of_the_page_is_what_was_measured(head: str) -> None:
    assert table(PAGE, head) == list(TABLES[head]())


def test_the_readmes_gpu_rows_are_what_was_measured() -> None:
    assert table(README, "| FLUX.1-dev, 1024x1024") == list(readme_rows())


def test_the_readme_says_where_a_goal_was_missed() -> None:
    missed = [goal["what"] for goal in FLUX["goals"] if not goal["held"]]
    assert "here lossless, times faster than diffusers compiled" in missed
    section = README.split("\n## On a GPU")[1].split("\n## ")[0]
    assert re.search(r"1\.25 .*not reached", section, re.DOTALL)


def test_the_measured_card_is_the_one_that_is_named() -> None:
    for found in (FLUX, HEADLINE):
        assert found["machine"]["gpu"] == "NVIDIA H200"
    assert TIERS["hardware"] == "NVIDIA H200"
    for text in (PAGE, README):
        assert "NVIDIA H200" in text


def test_the_gain_of_the_step_alone_is_told_beside_that_of_the_whole_picture() -> None:
    peer, ours = timed("diffusers compiled, decoder too"), timed("here lossless")
    step = peer["step_ms"]["median"] / ours["step_ms"]["median"]
    without = [
        each["seconds"]["median"] - min(e["median"] for e in each["notes"]["encode_s"].values())
        for each in (peer, ours)
    ]
    assert f"the step alone {step:.2f}x" in PAGE
    assert f"without the PNG on either side {without[0] / without[1]:.2f}x" in PAGE


def test_turbo_is_measured_with_the_plan_that_serves() -> None:
    (turbo,) = (way for way in PLANS["ways"] if way["name"] == "turbo")
    assert turbo["calls"] == timed("here turbo")["passes"]
    assert turbo["calls"] == TIERS["tiers"]["turbo"]["model_calls_per_picture"]


# -- Qwen ------------------------------------------------------------------------------------------
def readme_qwen_rows() -> Iterator[str]:
    """This server, transformers in the same run, and the mark that vLLM set elsewhere."""
    found = qwen_vl_journal.results()
    for prompt in ("1024x1024", "448x448", "text"):
        one, many = (found["http"][f"{clients} x {prompt}"] for clients in (1, 64))
        peer = found["peer"][f"transformers static, 1 x {prompt}"]
        mark, busy = (qwen_vl_goals.VLLM[f"{clients} x {prompt}"] for clients in (1, 64))
        first, per = one["ttft_ms_p50"], one["tpot_ms_mean"]
        theirs = f"{peer['ttft_ms']:.0f} ms | {mark['ttft_ms_p50']:.0f} ms"
        yield f"| {prompt}: first token | {first:.1f} ms | {theirs} |"
        theirs = f"{peer['tpot_ms']:.2f} ms | {mark['tpot_ms_mean']:.2f} ms"
        yield f"| {prompt}: per token, one client | {per:.2f} ms | {theirs} |"
        rates = f"{many['requests_per_s']:.1f} requests/s | - | {busy['requests_per_s']} requests/s"
        yield f"| {prompt}: 64 clients | {rates} |"


def test_the_readmes_qwen_rows_are_what_was_measured() -> None:
    assert table(README, "| Qwen2.5-VL-3B, 64 tokens in") == list(readme_qwen_rows())


def test_the_fp8_paragraph_says_what_was_measured() -> None:
    found = results("qwen_vl_fp8")
    low, high = found["difference_interval_95"]
    assert low > found["goal_points"]
    assert f"95 % interval {low:.3f} to +{high:.3f}" in PAGE
    right = {name: each["right"] for name, each in found["shares"].items()}
    assert set(right.values()) == {2394}, right
    assert "2,394 right both times" in PAGE
    assert found["same_words"] == found["scenes"] == 2400


def test_the_qwen_tables_are_what_was_measured() -> None:
    assert qwen_vl_journal.written(PAGE, qwen_vl_journal.results()) == PAGE
    places = [place[1] for place in qwen_vl_journal.PLACE.finditer(PAGE)]
    assert sorted(places) == sorted(qwen_vl_journal.TABLES), "each table once"


def test_a_qwen_table_that_was_not_measured_says_so() -> None:
    for name in qwen_vl_journal.TABLES:
        assert qwen_vl_journal.table(name, {}) == qwen_vl_journal.MISSING
