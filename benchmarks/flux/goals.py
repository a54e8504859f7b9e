"""Goals of the GPU work on FLUX, beside the measurements of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.goals import Goal

RATIOS = {"here lossless": 1.25, "here high": 1.75, "here turbo": 2.8}
"""Times faster than diffusers compiled: 1024x1024, 28 steps, one picture, embeddings to PNG."""
WIDTH, STEPS = 1024, 28
JOULES = {"here lossless": 2350.0, "here high": 1450.0, "here turbo": 750.0}
"""Of the card per picture, in the case of `RATIOS`."""
SCHNELL_S = 0.50
VAE_MS = 32.0
VAE_STAGE = "vae, with uint8 and its copy"
WARM_SHARE = 1 / 3
WARM = {"warm_share_of_cold": "warm-up", "compile_share_of_cold": "compile time"}

Found = Mapping[str, Any]
Results = Iterator[dict[str, Any]]


def held(found: Found) -> list[dict[str, Any]]:
    rows, stages = found.get("rows", ()), found.get("stages", ())
    large = [row for row in rows if row["case"]["width"] == row["case"]["height"] == WIDTH]
    made = (
        _ratios(large),
        _joules(large),
        _schnell(large),
        _vae(stages),
        _start(found),
        _steady(found),
    )
    return [result for results in made for result in results]


def _ratios(rows: list[Found]) -> Results:
    for row in rows:
        case, times = row["case"], row.get("ratio_to_peer")
        is_it = (case["model"], case["steps"], case["batch"]) == ("dev", STEPS, 1)
        if is_it and times is not None and row["engine"] in RATIOS:
            what = f"{row['engine']}, times faster than diffusers compiled"
            yield Goal(what, RATIOS[row["engine"]], is_least=True).result(times)


def _joules(rows: list[Found]) -> Results:
    for row in rows:
        case, joules = row["case"], row.get("joules")
        is_it = (case["model"], case["steps"], case["batch"]) == ("dev", STEPS, 1)
        if is_it and joules is not None and row["engine"] in JOULES:
            yield Goal(f"{row['engine']}, J per picture", JOULES[row["engine"]]).result(joules)


def _schnell(rows: list[Found]) -> Results:
    for row in rows:
        if row["case"]["model"] == "schnell" and row["engine"] in RATIOS:
            what = f"{row['engine']}, schnell in {row['case']['steps']} steps, seconds"
            yield Goal(what, SCHNELL_S).result(row["seconds"]["median"])


def _vae(stages: list[Found]) -> Results:
    for each in stages:
        ms = each["ms"].get(VAE_STAGE)
        is_large = each["case"]["width"] == each["case"]["height"] == WIDTH
        if ms is not None and is_large and each["engine"] == "here lossless":
            yield Goal("autoencoder, ms", VAE_MS).result(ms["median"])


def _start(found: Found) -> Results:
    for key, what in WARM.items():
        if (share := found.get("start", {}).get(key)) is not None:
            yield Goal(f"warm start's share of the cold {what}", WARM_SHARE).result(share)


def _steady(found: Found) -> Results:
    if "steady" not in found:
        return
    for what, number in found["steady"]["since ready"].items():
        yield Goal(f"{what} after ready", 0).result(number)
    for prompt in ("known prompt", "new prompt"):
        syncs = found["steady"][prompt]["host_syncs"]
        number = syncs if isinstance(syncs, int) else 1
        yield Goal(f"host syncs, {prompt}", 0).result(number)
