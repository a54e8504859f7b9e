"""Folders that are complete or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from predictors.compute.checkpoint.writing import new_folder
from predictors.errors import EngineFailed, InvalidRequest

FULL = [
    OSError(28, "No space left on device"),
    shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
]


@pytest.mark.parametrize("copy", [shutil.copytree, shutil.copy2])
def test_a_link_to_what_was_never_fetched_is_named(copy: Any, tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    link = source / "vocab.json"
    link.symlink_to("/nowhere/vocab.json")
    told = "^tokenizer/vocab.json can't be read: No such file or directory; fetch the checkpoint"
    with pytest.raises(EngineFailed, match=told), new_folder(tmp_path / "made") as growing:
        copy(source if copy is shutil.copytree else link, growing)
    assert [each.name for each in tmp_path.iterdir()] == ["tokenizer"]


def test_a_place_where_nothing_can_be_made_is_named() -> None:
    told = "^made can't be written: No such file or directory"
    with pytest.raises(EngineFailed, match=told), new_folder(Path("/proc/none/made")) as growing:
        growing.mkdir(parents=True)


def test_a_folder_is_there_once_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as growing:
        growing.mkdir()
        (growing / "x").write_text("1")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "x").read_text() == "1"
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def fill_the_disk() -> None:
        with new_folder(tmp_path / "made") as growing:
            growing.mkdir()
            raise error

    with pytest.raises(EngineFailed, match="made can't be written: No space left on device"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    for there, said in (("made", "made exists already"), ("made.part", "left of an earlier run")):
        (tmp_path / there).mkdir()
        with pytest.raises(InvalidRequest, match=said), new_folder(tmp_path / "made"):
            pytest.fail("the block was begun")
        assert (tmp_path / there).is_dir()
        (tmp_path / there).rmdir()
