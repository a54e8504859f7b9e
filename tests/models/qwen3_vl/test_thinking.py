"""A Thinking checkpoint is served, and a start and a description say that its answers begin with
the model's reasoning.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from predictors.__main__ import main
from predictors.chat.template_checks import THINKING, opens_thinking
from predictors.models.qwen3_vl.model import Qwen3VLModel
from tests.variants import variant, write


@pytest.fixture
def thinking(checkpoint: Path, tmp_path: Path) -> Path:
    """Its template ends as that of Qwen3-VL-8B-Thinking does."""
    file = "chat_template.json"
    before, end = r"assistant\n", r"assistant\n<think>\n"  # escapes of Jinja
    plain = json.loads((checkpoint / file).read_text())["chat_template"]
    start, found, rest = plain.rpartition(before)
    assert found
    changed = json.dumps({"chat_template": start + end + rest})
    return variant(checkpoint, tmp_path / "thinking", write(file, changed))


def notes(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["check", "--json", "--memory", "24GiB", str(folder)]) == 0
    found: list[str] = json.loads(capsys.readouterr().out)["notes"]
    return found


def test_check_says_it_of_a_thinking_checkpoint_alone(
    checkpoint: Path, thinking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notes(thinking, capsys) == [THINKING]
    assert notes(checkpoint, capsys) == []


def test_a_start_logs_it(
    checkpoint: Path, thinking: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "predictors"):
        assert not Qwen3VLModel(checkpoint).opens_thinking
        assert THINKING not in caplog.text
        assert Qwen3VLModel(thinking).opens_thinking
    assert caplog.text.count(THINKING) == 1


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("<|im_start|>assistant\n<think>\n", True), ("<|im_start|>assistant\n", False),
     ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False), ("", False)],
)  # fmt: skip
def test_a_prompt_whose_thinking_is_closed_or_absent_is_none(prompt: str, opens: bool) -> None:
    assert opens_thinking(prompt) is opens
