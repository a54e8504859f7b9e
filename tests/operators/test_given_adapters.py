"""Adapters that a start is given: their names, and the room for them."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest
from predictors.operators.given_adapters import (
    GivenAdapters,
    find_adapters,
    listed_loras,
    room_for_given,
)
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
    assert list(found.summaries) == [("m", "a"), ("m", "b")]


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


def of_rank(rank: int) -> AdapterSummary:
    return AdapterSummary("a", "a.safetensors", "PEFT", "", rank, {}, 0)


def refused() -> AdapterSummary:
    raise InvalidRequest("it is a DoRA adapter")


def test_the_largest_adapter_of_a_model_sets_the_rank_that_there_is_room_for() -> None:
    looks = {("m", "a"): partial(of_rank, 4), ("m", "b"): partial(of_rank, 128)}
    found = GivenAdapters({}, {**looks, ("n", "a"): partial(of_rank, 8)})
    assert found.ranks() == {"m": 128, "n": 8}
    own = found.room(settings())
    assert (own.flux.adapter_rank, own.qwen_vl.adapter_rank) == (128, 128)


def test_small_adapters_leave_the_usual_room_and_a_setting_counts_more_than_they_do() -> None:
    small = settings().with_adapter_rank(8)
    assert (small.flux.adapter_rank, small.qwen_vl.adapter_rank) == (64, 16)
    flux = replace(settings().flux, lora_max_rank=4)
    assert replace(settings(), flux=flux).with_adapter_rank(128).flux.adapter_rank == 4


def test_an_adapter_that_is_refused_ends_a_start_and_leaves_the_rest_of_a_report() -> None:
    found = GivenAdapters({}, {("m", "a"): refused, ("m", "b"): partial(of_rank, 80)})
    with pytest.raises(InvalidRequest, match="DoRA"):
        found.ranks()
    assert found.room(settings()).flux.adapter_rank == 80


def test_there_is_room_for_the_adapters_that_are_given() -> None:
    assert room_for_given(settings(), ()) == settings()
    found = room_for_given(settings("a=/x"), ("b=/y",))
    assert (found.flux.lora_max_active, found.qwen_vl.lora_max_active) == (2, 2)
    own = replace(settings(), flux=replace(settings().flux, lora_max_active=5))
    assert room_for_given(own, ("b=/y",)).flux.lora_max_active == 5
