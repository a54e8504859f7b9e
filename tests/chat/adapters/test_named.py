"""The names under which requests ask for adapters, and an engine without any."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictors import metrics
from predictors.chat.adapters.named import NamedAdapters
from predictors.errors import InvalidRequest, NotFound
from predictors.settings import QwenVLSettings
from tests.chat.adapters.conftest import CPU, Adapted
from tests.chat.room import Room


def test_an_unknown_name_a_repeated_one_and_too_many_are_refused(adapters: Adapted) -> None:
    named = adapters.named
    with pytest.raises(InvalidRequest, match="no adapter 'wrods'; served: words, eyes, both"):
        named.mix([("wrods", 1.0)])
    with pytest.raises(InvalidRequest, match="'words' is given twice"):
        named.mix([("words", 1.0), ("words", 0.5)])
    few = NamedAdapters("test", adapters.room.model.linears, QwenVLSettings(lora_max_active=1), CPU)
    for name in ("words", "eyes"):
        few.add(name, adapters.folders[name])
    with pytest.raises(InvalidRequest, match="2 adapters are more than the 1"):
        few.mix([("words", 1.0), ("eyes", 1.0)])


def test_a_name_is_taken_until_it_is_removed(adapters: Adapted) -> None:
    named, folder = adapters.named, adapters.folders["words"]
    with pytest.raises(InvalidRequest, match="'words' is taken"):
        named.add("words", folder)
    named.add("again", folder)
    assert named.names[-1] == "again"
    loaded = metrics.loras_loaded.labels("test")._value
    assert loaded.get() == len(named.names)
    assert named.remove("again").name == "again"
    assert loaded.get() == len(named.names)
    with pytest.raises(NotFound, match="'again'"):
        named.remove("again")


def test_a_name_that_no_request_could_say_is_refused(adapters: Adapted) -> None:
    for name in ("", "a:b", "../a", "a" * 65, "ä"):
        with pytest.raises(InvalidRequest, match="an adapter's name has"):
            adapters.named.add(name, adapters.folders["words"])


def test_a_refused_adapter_is_not_added(adapters: Adapted, tmp_path: Path) -> None:
    names = adapters.named.names
    with pytest.raises(InvalidRequest, match="the adapter 'nothing'"):
        adapters.named.add("nothing", tmp_path / "nothing")
    assert adapters.named.names == names


def test_without_the_setting_there_are_no_tables_no_passes_and_no_adapters(
    room: Room, adapters: Adapted
) -> None:
    off = NamedAdapters("test", room.model.linears, QwenVLSettings(), CPU)
    with pytest.raises(InvalidRequest, match="LORA_MAX_ACTIVE"):
        off.add("words", adapters.folders["words"])
    plain, other = room.engine.describe(), adapters.room.engine.describe()
    assert room.runner._tables is None
    assert not [name for name in plain["warm_shapes"] if "adapted" in name]  # type: ignore[attr-defined]
    kept = [name for name in other["warm_shapes"] if "adapted" not in name]  # type: ignore[attr-defined]
    assert kept == plain["warm_shapes"]
