"""Adapters that a start is given: their names, and the room for them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from predictors.errors import InvalidRequest
from predictors.operators.given_adapters import find_adapters, listed_loras, room_for_given
from predictors.settings import ServerSettings, Settings


def settings(loras: str = "", aliases: str = "") -> Settings:
    return Settings(server=ServerSettings(loras=loras, aliases=aliases))


def test_the_settings_list_adapters_as_flags_do() -> None:
    assert listed_loras(settings(" a=/x, ,b=y ")) == ["a=/x", "b=y"]
    assert listed_loras(settings()) == []


def test_each_adapter_can_be_looked_at() -> None:
    paths = {"m": {"a": Path("/x"), "b": Path("/y")}}
    found = find_adapters(paths, {"m": Path("m")}, settings(), {"m": "x:y"}, {})
    assert found.paths == paths
    assert list(found.looks) == [("m", "a"), ("m", "b")]


@pytest.mark.parametrize(
    ("name", "aliases", "message"),
    [
        ("a b", "", "--lora a b: the name of an adapter has 1 to 64 letters"),
        ("a/b", "", "the name of an adapter has"),
        ("predict", "", "':predict' there is a part of a route"),
        ("a", "m:a=m", "--lora a: 'm:a' is the name of a model"),
    ],
)
def test_a_name_that_can_not_be_asked_for_is_refused(name: str, aliases: str, message: str) -> None:
    named = {"m": Path("m")}
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        find_adapters({"m": {name: Path("x")}}, named, settings(aliases=aliases), {"m": "x:y"}, {})


def test_there_is_room_for_the_adapters_that_are_given() -> None:
    assert room_for_given(settings(), ()) == settings()
    found = room_for_given(settings("a=/x"), ("b=/y",))
    assert (found.flux.lora_max_active, found.qwen_vl.lora_max_active) == (2, 2)
    own = replace(settings(), flux=replace(settings().flux, lora_max_active=5))
    assert room_for_given(own, ("b=/y",)).flux.lora_max_active == 5
