"""Compiled passes with DeepStack levels: the same tokens, and nothing compiles after warming."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat.test_compiled import mixed
from tests.models.qwen3_vl.conftest import open_room


@pytest.mark.parametrize("deterministic", ["on", "off"])
def test_mixed_traffic_compiles_nothing_after_warming(checkpoint: Path, deterministic: str) -> None:
    given = {"slots": 2, "prefill_chunk": 64, "deterministic": deterministic}
    room = open_room(checkpoint, compile="aot_eager", **given)
    compiled = mixed(room)
    assert room.engine.guard.check() == 0
    assert compiled == mixed(open_room(checkpoint, **given))
