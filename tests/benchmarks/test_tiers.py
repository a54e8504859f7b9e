"""The comparison of tiers: its statistics are those of the books, it pairs pictures by seed, counts
model calls as the engine does, and needs no KServe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common.stats import difference_interval, share_interval
from benchmarks.flux import tiers as flux_tiers
from benchmarks.flux.likeness import RandomFeatures, anchors, psnr_db
from benchmarks.flux.tiers_engine import STEPS
from benchmarks.flux.tiers_judge import Judges, judge
from checkpoints.training import drawing
from checkpoints.training.scenes import evaluation_scenes
from predictors.diffusion.request import HIGH, LOSSLESS, TURBO

ROOT = Path(__file__).resolve().parents[2]
# what the GPU machine lacks, and what only a server needs
ABSENT = ("kserve", "fastapi", "starlette", "uvicorn", "orjson", "grpc", "openai")


def test_a_shares_interval_is_wilsons() -> None:
    # 81 of 263, the example of Newcombe 1998 (method 3)
    low, high = share_interval(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_a_paired_differences_interval_is_bonett_and_prices() -> None:
    # 20 pairs of one kind of disagreement, 8 of the other, 100 in all, by hand
    first = [True] * 20 + [False] * 8 + [True] * 72
    second = [False] * 20 + [True] * 8 + [True] * 72
    lost, won = 21 / 102, 9 / 102
    half = 1.959964 * ((lost + won - (won - lost) ** 2) / 102) ** 0.5
    assert difference_interval(first, second) == pytest.approx(
        (won - lost - half, won - lost + half)
    )


def test_pairs_that_always_agree_still_leave_doubt() -> None:
    low, high = difference_interval([True] * 50, [True] * 50)
    assert low == -high
    assert 0.02 < high < 0.1


def test_equal_pictures_are_at_distance_zero_and_others_farther_than_their_jpegs() -> None:
    pictures = [np.asarray(image) for image in drawing.draw(evaluation_scenes(8, seed=5), seed=5)]
    features = RandomFeatures(torch.device("cpu"))
    assert features.distances(pictures, pictures).tolist() == [0.0] * 8
    assert psnr_db(pictures[0], pictures[0]) == float("inf")
    known = anchors(pictures, features.distances)
    assert 0 < known["JPEG of quality 90"] < known["another prompt"]


def test_the_judges_answer_in_order_and_as_the_checker_does() -> None:
    scenes = evaluation_scenes(20, seed=6)
    pictures = [np.asarray(image) for image in drawing.draw(scenes, seed=6)]
    asked = [*scenes[:18], scenes[19], scenes[18]]  # two are not what was asked for
    with Judges(workers=1) as judges:
        verdicts = judges.read(pictures, asked).wait()
    assert verdicts == [True] * 18 + [False] * 2 == judge(pictures, asked)


def test_lossless_is_always_drawn_first_and_each_number_of_calls_is_a_way() -> None:
    ways = flux_tiers.ways_for((TURBO, HIGH), (12, 17))
    assert [way.name for way in ways] == [LOSSLESS, HIGH, TURBO, "turbo of 12", "turbo of 17"]
    assert [way.calls for way in ways][:2] == [STEPS, STEPS]
    assert [way.calls for way in ways][3:] == [12, 17]


def test_it_compares_tiers_without_kserve_and_leaves_what_it_has_when_time_is_up(
    tmp_path: Path,
) -> None:
    out = tmp_path / "tiers.json"
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ABSENT)
    options = "--prompts 9 --block 1 --budget 0 --tiers turbo --slots 1 --workers 1 --threads 1"
    code = f"import sys; {blocked}from benchmarks.flux.tiers import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *options.split(), "--plans", "8", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (report["prompts"], report["asked_for"]) == (1, 9)
    rows = report["tiers"]
    assert list(rows) == [LOSSLESS, TURBO, "turbo of 8"]
    assert rows[LOSSLESS]["model_calls_per_picture"] == STEPS
    assert rows["turbo of 8"]["model_calls_per_picture"] == 8
    assert rows[LOSSLESS]["right"] == 1  # the checkpoint can draw
    assert rows[TURBO]["psnr_db_mean"] > rows["turbo of 8"]["psnr_db_mean"]
    assert "points" in done.stdout
