"""The FLUX tables of docs/performance.md and of the README, made from results files: those of
`benchmarks.flux` (also its headline section), `benchmarks.flux.tiers` and
`benchmarks.flux.tiers_plans`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import journal
from benchmarks.common.goals import goal_cells
from benchmarks.common.journal import Rows, Tables

Found = Mapping[str, Any]

FIRST = {"model": "dev", "width": 1024, "height": 1024, "steps": 28, "batch": 1}
BEST_PEER = "diffusers compiled, decoder too"
README_ENGINES = {
    BEST_PEER: "diffusers 0.42, compiled, decoder too",
    "here lossless": "here, `lossless` (bf16)",
    "here high": "here, `high` (fp8)",
    "here turbo": "here, `turbo` (fp8, 14 of 28 steps call the model)",
}


def timed(found: Found, engine: str, case: Mapping[str, Any] = FIRST) -> dict[str, Any]:
    """The row of an engine and a case. Raises `ValueError` if there is not exactly one."""
    (row,) = (r for r in found["rows"] if r["engine"] == engine and r["case"] == case)
    return dict(row)


def clock(found: Found) -> Rows:
    """Seconds with their spread, rates, memory and ratio of every case and engine."""
    if not found.get("rows"):
        return
    yield (
        "case", "engine", "s", "least to largest", "ms per step", "TFLOP/s", "of the floor",
        "peak GiB", "times the peer",
    )  # fmt: skip
    for row in found["rows"]:
        case, seconds = row["case"], row["seconds"]
        batch = f", {case['batch']} pictures" if case["batch"] > 1 else ""
        calls = "" if row["passes"] == case["steps"] else f" ({row['passes']} calls)"
        yield (
            f"{case['model']} {case['width']}x{case['height']}, {case['steps']} steps{batch}",
            row["engine"] + calls,
            f"{seconds['median']:.3f}",
            f"{seconds['least']:.3f} to {seconds['largest']:.3f}",
            _number(row.get("ms_per_step"), "{:.1f}"),
            _number(row.get("tflops"), "{:.0f}"),
            _number(row.get("share_of_floor"), "{:.0%}").replace("%", " %"),
            _number(row["peak_bytes"] and row["peak_bytes"] / 2**30, "{:.1f}"),
            _number(row["ratio_to_peer"], "{:.2f}"),
        )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def energy(found: Found) -> Rows:
    """Energy of the card per picture, where its driver counts it."""
    rows = [row for row in found.get("rows", ()) if row.get("joules") is not None]
    if not rows:
        return
    yield "energy", "engine", "kJ per picture", "mean W"
    for row in rows:
        case = row["case"]
        watts = row["joules"] * case["batch"] / row["seconds"]["median"]
        batch = f", {case['batch']} pictures" if case["batch"] > 1 else ""
        name = f"{case['model']} {case['width']}x{case['height']}, {case['steps']} steps{batch}"
        yield name, row["engine"], f"{row['joules'] / 1e3:.2f}", f"{watts:.0f}"


def stages(found: Found) -> Rows:
    """Each stage of one picture by every engine; `-` where an engine has no such stage."""
    by_engine = {each["engine"]: each["ms"] for each in found.get("stages", ())}
    if not by_engine:
        return
    yield "stage, ms", *by_engine
    for name in dict.fromkeys(name for ms in by_engine.values() for name in ms):
        cells = [ms.get(name) for ms in by_engine.values()]
        if any(cells):
            yield name, *("-" if ms is None else f"{ms['median']:.1f}" for ms in cells)


def goals(found: Found) -> Rows:
    if not found.get("goals"):
        return
    yield "goal", "measured", "asked for", "reached"
    yield from (goal_cells(goal) for goal in found["goals"])


def headline(found: Found) -> Rows:
    """The gain of torch.compile in the cases that the project began with."""
    if "headline" not in found:
        return
    yield (
        "the seed's case", "eager, ms per step", "compiled", "steps per second",
        "eager, s for 50 steps (derived)", "compiled", "pictures per second",
    )  # fmt: skip
    for each in found["headline"]:
        case, by = each["case"], each["by"]
        eager, compiled = by["diffusers eager"], by["diffusers compiled"]
        before, after = eager["step_ms"]["median"], compiled["step_ms"]["median"]
        long_before, long_after = eager["derived_50_steps_s"], compiled["derived_50_steps_s"]
        yield (
            f"{case['width']}x{case['height']}, batch {case['batch']}",
            f"{before:.1f}",
            f"{after:.1f}",
            f"+{100 * (before / after - 1):.0f} %",
            f"{long_before:.2f}",
            f"{long_after:.2f}",
            f"+{100 * (long_before / long_after - 1):.0f} %",
        )


def velocity(found: Found) -> Rows:
    if "accuracy" not in found:
        return
    names = ("diffusers eager", "diffusers compiled", "here lossless", "here high")
    yield "velocity", *names
    for step, by in found["accuracy"]["velocity"].items():
        for reference, distances in by.items() if step != "verdict" else ():
            cells = (_number(distances.get(name), "{:.4f}") for name in names)
            yield f"{step}, {reference}", *cells


def latents(found: Found) -> Rows:
    if "accuracy" not in found:
        return
    yield "latents", "to diffusers eager", "to here lossless"
    for engine, row in found["accuracy"]["latents"].items():
        cells = (f"{row[to]:.4f}" for to in ("to diffusers eager", "to here lossless"))
        yield engine if row["finite"] else f"{engine}: **not finite**", *cells


def start(found: Found) -> Rows:
    if "start" not in found:
        return
    cold, warm = found["start"]["cold"], found["start"]["warm"]
    yield "start, s", "cold", "warm"
    for name in ("import_s", "load_s", "warm_s", "first_picture_s", "process_s"):
        label = name.removesuffix("_s").replace("_", " ")
        yield label, f"{cold[name]:.2f}", f"{warm[name]:.2f}"
    for name in ("capture", "compile"):
        if name in cold["phases"]:
            yield f"phase {name}", *(f"{each['phases'][name]:.2f}" for each in (cold, warm))
    for name in ("compiled", "cached"):
        yield f"kernels {name}", *(f"{each['phases'][name]:.0f}" for each in (cold, warm))


def tiers(found: Found) -> Rows:
    yield (
        "tier", "calls", "right", "points to lossless (95 %)",
        "right in one only: lossless / this", "PSNR dB, mean (5 % below)", "distance, mean (95 %)",
    )  # fmt: skip
    for name, tier in journal.results("flux_tiers")["tiers"].items():
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
        yield name, calls, f"{100 * tier['share']:.2f} %", *paired


def plans(found: Found) -> Rows:
    yield "plan", "calls", "which (`x`)", "to all 28, mean", "95 %", "to 84 steps", "right"
    ways = journal.results("flux_turbo_plans")["ways"]
    (turbo,) = (way for way in ways if way["name"] == "turbo")
    for way in ways:
        if way["calls"] == turbo["calls"] or way["name"] in {"all 28", "growing gaps"}:
            yield (
                way["name"],
                str(way["calls"]),
                f"`{way['called']}`" if way["called"] else "-",
                f"{way['to_all_calls_mean']:.4f}",
                f"{way['to_all_calls_95_percent']:.4f}",
                f"{way['to_fine_mean']:.4f}",
                str(way["right"]),
            )


def seed(found: Found) -> Rows:
    """The committed headline run."""
    return headline(journal.results("flux_headline"))


def readme(found: Found) -> Rows:
    """The README's four rows: the fastest peer and the tiers."""
    yield "FLUX.1-dev, 1024x1024, 28 steps", "median", "times diffusers"
    best = timed(found, BEST_PEER)["seconds"]["median"]
    for engine, name in README_ENGINES.items():
        seconds = timed(found, engine)["seconds"]["median"]
        yield name, f"{seconds:.2f} s", f"{best / seconds:.2f}"


OF_A_RUN: Tables = {
    "clock": clock,
    "energy": energy,
    "stages": stages,
    "goals": goals,
    "velocity": velocity,
    "latents": latents,
    "headline": headline,
    "start": start,
}
"""Made from the results of one run of `benchmarks.flux`."""
ENERGY: Tables = {"energy": OF_A_RUN["energy"]}
"""Made from a run of its own."""
ON_PAGES: Tables = {
    **{name: made for name, made in OF_A_RUN.items() if name not in ENERGY},
    "headline": seed,
    "tiers": tiers,
    "plans": plans,
    "readme": readme,
}
"""Those of docs/performance.md and the README."""
