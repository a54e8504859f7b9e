"""A stored template is tried on every kind of conversation, and compiled once."""

from __future__ import annotations

from typing import Any

import pytest

from predictors.chat import stored_template
from predictors.chat.stored_template import BoundedEnvironment, check_stored_template
from predictors.chat.template_checks import PROBES
from predictors.chat.token_files import read_tokens
from tests.product.conftest import CHECKPOINTS


def test_a_template_is_compiled_once_for_all_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    class Counting(BoundedEnvironment):
        def compile(self, source: Any, *given: Any, **options: Any) -> Any:
            compiled.append(source)
            return super().compile(source, *given, **options)

    monkeypatch.setattr(stored_template, "BoundedEnvironment", Counting)
    folder = CHECKPOINTS / "shapes-qwen-vl"
    check_stored_template(folder, read_tokens(folder))
    assert len(PROBES) > 1
    assert len(compiled) == 1
