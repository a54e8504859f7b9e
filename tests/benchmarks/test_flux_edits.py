"""The benchmark of edits at the embedded checkpoint's size: every figure is there."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.flux import edits
from benchmarks.flux.cases import Case


def test_a_toy_run_writes_both_sides_the_preview_and_the_distilled_setting(tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    run = edits.measure(out, 300.0, edits.EditOptions(torch.device("cpu"), is_toy=True))
    assert run.found["failed"] == {}
    found = json.loads(out.read_text())
    for section in ("img2img", "kontext"):
        assert found[section]["diffusers compiled"]["seconds"]["median"] > 0
        assert found[section]["here lossless"]["times_faster"] > 0
    assert set(found["distilled"]) == {"plain", "adapter"}
    assert found["previews"]["linear_ms"]["median"] >= 0
    assert found["previews"]["vae_ms"]["median"] > 0


def test_an_edit_runs_the_last_steps_of_its_schedule() -> None:
    assert Case("dev", 64, 64, steps=28, strength=0.75).passes == 21
    assert Case("dev", 64, 64, steps=28).passes == 28
