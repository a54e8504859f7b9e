"""The benchmark of adapters at the embedded checkpoint's size: its figures are there, and no pass
was captured late."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.flux import lora
from predictors.diffusion.request import LOSSLESS


def test_a_toy_run_writes_a_figure_for_every_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_, last = lora.mixes()
    monkeypatch.setattr(lora, "ROWS", 2)
    monkeypatch.setattr(lora, "mixes", lambda: [first, last])
    out = tmp_path / "lora.json"
    run = lora.measure(out, torch.device("cpu"), 300.0, is_toy=True, tiers=(LOSSLESS,))
    assert run.found["failed"] == {}
    found = json.loads(out.read_text())
    assert found["ready"]["tables_gib"] > 0
    assert set(found["adding"]) == {f"rank {r}, number {n}" for r in (16, 64) for n in (1, 4)}
    steps = found[LOSSLESS]
    assert steps.pop("captures_after_ready") == 0
    assert list(steps) == [first.name, last.name]
    assert all(each["ms"]["median"] > 0 for each in steps.values())


def test_the_mixes_name_adapters_that_are_added_and_as_many_pictures() -> None:
    mixes = lora.mixes()
    assert len({mix.name for mix in mixes}) == len(mixes)
    added = {f"r{rank}-{i}" for rank in lora.RANKS for i in range(lora.NUM_ADAPTERS)}
    for mix in mixes:
        assert {name for names in mix.adapters for name in names} <= added
        assert mix.name.startswith(f"{len(mix.adapters)} picture")
