"""One file or several, and what is said when they are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from predictors.compute.shards import Shards
from predictors.errors import EngineFailed


def folder_with(tmp_path: Path, **files: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "transformer"
    folder.mkdir()
    for stem, tensors in files.items():
        save_file(tensors, folder / f"{stem}.safetensors")
    return folder


def indexed(folder: Path, *names: str) -> Path:
    mapping = {f"t{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    return folder


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_a_single_file_is_read_under_either_library_s_name(tmp_path: Path, stem: str) -> None:
    folder = folder_with(tmp_path, **{stem: {"a": torch.arange(3)}})
    with Shards(folder) as shards:
        assert list(shards) == ["a"]
        assert "a" in shards
        assert shards.read("a").tolist() == [0, 1, 2]


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, one={"a": torch.zeros(1)}, two={"b": torch.ones(1)})
    with Shards(indexed(folder, "one.safetensors", "two.safetensors")) as shards:
        assert [shards.read(name).item() for name in ("a", "b")] == [0, 1]


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        Shards(folder_with(tmp_path, model={"a": torch.zeros(1)})) as shards,
        pytest.raises(EngineFailed, match="transformer has no tensor b"),
    ):
        shards.read("b")


def test_a_folder_without_safetensors_says_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(EngineFailed, match="has no safetensors weights"), Shards(folder):
        pass


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 9])
def test_a_broken_file_is_named_and_its_place_is_not(tmp_path: Path, content: bytes) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EngineFailed, match=r"transformer/model\.safetensors is broken") as caught:
        Shards(folder).__enter__()
    assert str(tmp_path) not in caught.value.message
    assert f"{len(content)} bytes" in caught.value.message


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, model={"a": torch.zeros(1000)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineFailed, match=r"model\.safetensors is broken or cut short"):
        Shards(folder).__enter__()


@pytest.mark.parametrize("name", ["two.safetensors", "../secret.safetensors", "/etc/passwd"])
def test_an_index_may_only_name_files_beside_it(tmp_path: Path, name: str) -> None:
    save_file({"s": torch.zeros(1)}, tmp_path / "secret.safetensors")
    folder = folder_with(tmp_path, one={"a": torch.zeros(1)})
    with pytest.raises(EngineFailed, match=f"lacks {Path(name).name}, which its index names"):
        Shards(indexed(folder, "one.safetensors", name)).__enter__()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EngineFailed, match=r"model\.safetensors\.index\.json is not an index"):
        Shards(folder).__enter__()
