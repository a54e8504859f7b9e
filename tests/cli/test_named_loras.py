"""Adapters on the command line: of which model, under which name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from predictors.cli.named_values import named_loras
from predictors.errors import InvalidRequest


def test_an_adapter_is_of_the_only_model_or_of_the_one_it_names() -> None:
    assert named_loras(["a=/x", "b=y"], ["flux"]) == {"flux": {"a": Path("/x"), "b": Path("y")}}
    assert named_loras(["one:a=/x", "two:a=/y", "one:b=/z"], ["one", "two"]) == {
        "one": {"a": Path("/x"), "b": Path("/z")},
        "two": {"a": Path("/y")},
    }
    assert named_loras(["x:y:a=/x"], ["x:y", "z"]) == {"x:y": {"a": Path("/x")}}
    assert named_loras([], []) == {}


@pytest.mark.parametrize(
    ("flags", "models", "message"),
    [
        (["a"], ["flux"], "--lora takes NAME=PATH, not 'a'"),
        (["a="], ["flux"], "--lora takes NAME=PATH"),
        (["a=x", "a=y"], ["flux"], "--lora a is given twice"),
        (["a=x", "flux:a=y"], ["flux"], "--lora a is given twice for flux"),
        (["a=x"], [], "--lora a: no model here takes adapters"),
        (["a=x"], ["one", "two"], "--lora a: of which model? Write MODEL:a=PATH"),
        (["three:a=x"], ["one", "two"], "there is no --model three that takes adapters"),
    ],
)
def test_an_adapter_of_no_clear_model_is_refused(
    flags: list[str], models: list[str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        named_loras(flags, models)
