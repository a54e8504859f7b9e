"""Warm-up runs the same conversations through a model with DeepStack."""

from __future__ import annotations

from pathlib import Path

from predictors.chat.template_checks import PROBES
from predictors.models.qwen3_vl.model import Qwen3VLModel
from tests.chat.room import Room
from tests.chat.test_rehearsal import rehearse
from tests.models.qwen3_vl.checkpoint import write_checkpoint


def test_a_model_with_deepstack_is_tried_alike(tmp_path: Path) -> None:
    room = Room.open(write_checkpoint(tmp_path / "c"), make_model=Qwen3VLModel, slots=1)
    assert rehearse(room) == [*PROBES, "a film"]
