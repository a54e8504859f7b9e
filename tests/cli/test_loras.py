"""Adapters on the command line: of which model, under which name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from predictors.cli.loras import find_adapters, named_loras, with_loras
from predictors.errors import InvalidRequest
from predictors.settings import ServerSettings, Settings


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


def settings(loras: str = "", aliases: str = "") -> Settings:
    return Settings(server=ServerSettings(loras=loras, aliases=aliases))


def test_the_settings_adapters_come_before_the_flags() -> None:
    found = find_adapters(["b=/y"], {"m": Path("m")}, settings("a=/x, "), {"m": "x:y"}, {})
    assert list(found.paths["m"]) == ["a", "b"]
    assert list(found.looks) == [("m", "a"), ("m", "b")]


@pytest.mark.parametrize(
    ("flag", "aliases", "message"),
    [
        ("a b=x", "", "--lora a b: the name of an adapter has 1 to 64 letters"),
        ("a/b=x", "", "the name of an adapter has"),
        ("predict=x", "", "':predict' there is a part of a route"),
        ("a=x", "m:a=m", "--lora a: 'm:a' is the name of a model"),
    ],
)
def test_a_name_that_can_not_be_asked_for_is_refused(flag: str, aliases: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        find_adapters([flag], {"m": Path("m")}, settings(aliases=aliases), {"m": "x:y"}, {})


def test_there_is_room_for_the_adapters_that_are_given() -> None:
    assert with_loras(settings(), ()).flux.lora_max_active == 0
    assert with_loras(settings("a=/x"), ("b=/y",)).flux.lora_max_active == 2
    own = settings()
    own = replace(own, flux=replace(own.flux, lora_max_active=5))
    assert with_loras(own, ("b=/y",)) is own
