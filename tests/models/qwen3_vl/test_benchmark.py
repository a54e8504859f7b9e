"""The table of chat models side by side: which checkpoints are made, and what the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.qwen_vl import models, random_weights
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.ours import Ours

RELEASED = {
    "Qwen2.5-VL-3B": 3.75e9,
    "Qwen2.5-VL-7B": 8.29e9,
    "Qwen3-VL-2B": 2.13e9,
    "Qwen3-VL-4B": 4.44e9,
}


@pytest.mark.parametrize("name", models.MODELS)
def test_a_full_size_checkpoint_has_as_many_parameters_as_the_released_one(
    tmp_path: Path, name: str
) -> None:
    random_weights.write_configs(tmp_path, models.MODELS[name])
    count = sum(shape.numel() for shape in random_weights.shapes(tmp_path).values())
    assert count == pytest.approx(RELEASED[name], rel=0.003)


def test_a_toy_of_another_architecture_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    models.make(folder, models.TOYS["Qwen3-VL-2B"], torch.device("cpu"))
    one = Ours(QwenVLOptions(folder=str(folder), device="cpu", is_toy=True, slots=2))
    (job,) = one.answers([one.prepare("a red star", tokens=3)])
    assert len(job.tokens) == 3


def row(first: float, each: float) -> dict[str, Any]:
    return {
        "case": {}, "requests_per_s": 1.0, "tokens_per_s": 100.4, "prompt_tokens_mean": 63.2,
        "ttft_ms_p50": first, "ttft_ms_p99": 2 * first, "tpot_ms_mean": each, "tpot_ms_p99": each,
    }  # fmt: skip


def test_the_table_puts_the_models_of_one_case_together() -> None:
    found = {
        "models": {
            "one": {"http": {"ready_s": 1.0, "1 x text": row(10, 2), "64 x text": row(30, 4)}},
            "other": {"http": {"1 x text": row(11, 3), "64 x text": {"case": {}, "errors": ["x"]}}},
        }
    }
    lines = models.table(found).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| one", "1 x text"], ["| other", "1 x text"],
        ["| one", "64 x text"], ["| other", "64 x text"],
    ]  # fmt: skip
    assert lines[2] == "| one | 1 x text | 63 | 10.0 | 20.0 | 2.00 | 2.00 | 100 |"
    assert "| failed |" in lines[5]
    assert len({line.count("|") for line in lines}) == 1


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.read_options(["--models", "Qwen9"])
    assert "--models takes Qwen2.5-VL-3B, Qwen2.5-VL-7B, Qwen3-VL-2B" in capsys.readouterr().err
