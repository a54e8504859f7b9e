"""Reading one file or several, and the messages for broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from predictors.compute.checkpoint.headers import Header
from predictors.compute.checkpoint.shards import Shards
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


def test_a_shape_is_returned_without_reading_the_tensor(tmp_path: Path) -> None:
    with Shards(folder_with(tmp_path, model={"a": torch.zeros(2, 0, 3), "b": torch.ones(())})) as s:
        assert (s.shape("a"), s.shape("b")) == ((2, 0, 3), ())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_targets_are_filled_whatever_their_layout_and_dtype(tmp_path: Path, device: str) -> None:
    stored = {
        "rows": torch.randn(300, 1000, dtype=torch.bfloat16),
        "columns": torch.randn(64, 40),
        "integers": torch.arange(5),
        "eight": torch.randn(8, 16).to(torch.float8_e4m3fn),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
    }
    packed = torch.zeros(600, 1000, dtype=torch.bfloat16, device=device)
    padded = torch.zeros(64, 48, dtype=torch.bfloat16, device=device)
    targets = {
        "rows": packed[300:],
        "columns": padded[:, :40],
        "integers": torch.zeros(5, dtype=torch.int64, device=device),
        "eight": torch.zeros(8, 16, dtype=torch.float8_e4m3fn, device=device),
        "one": torch.zeros((), device=device),
        "none": torch.zeros(0, 4, device=device),
    }
    with Shards(folder_with(tmp_path, model=stored)) as shards:
        shards.copy_into((target, name) for name, target in targets.items())
    for name, target in targets.items():
        assert torch.equal(target.cpu().float(), stored[name].to(target.dtype).float()), name
    assert not packed[:300].any()
    assert not padded[:, 40:].any()


def test_parameters_are_filled_in_place_and_inference_tensors_too(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    with torch.inference_mode():
        made = torch.zeros(3)
    with Shards(folder_with(tmp_path, model={"a": torch.arange(3.0)})) as shards:
        shards.copy_into([(parameter, "a"), (made, "a")])
    assert parameter.tolist() == made.tolist() == [0, 1, 2]
    assert parameter.requires_grad


def test_a_target_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    with (
        Shards(folder_with(tmp_path, model={"a": torch.zeros(2, 3)})) as shards,
        pytest.raises(EngineFailed, match=r"tensor a has shape \[2, 3\].* asks for \[3, 2\]"),
    ):
        shards.copy_into([(torch.zeros(3, 2), "a")])


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        Shards(folder_with(tmp_path, model={"a": torch.zeros(1)})) as shards,
        pytest.raises(EngineFailed, match="transformer has no tensor b"),
    ):
        shards.read("b")


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(EngineFailed, match="has no safetensors weights"), Shards(folder):
        pass


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 9])
def test_a_broken_file_is_named_without_its_path(tmp_path: Path, content: bytes) -> None:
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
def test_an_invalid_index_is_named(tmp_path: Path, text: str) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EngineFailed, match=r"model\.safetensors\.index\.json is not an index"):
        Shards(folder).__enter__()


def test_weights_under_another_name_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, weights={"a": torch.zeros(1)})
    with pytest.raises(EngineFailed, match=r"has 'weights.safetensors', which is not read"):
        Shards(folder).__enter__()


def test_headers_are_returned_without_reading_tensors(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, model={"a": torch.zeros(2, 3, dtype=torch.int8)})
    with Shards(folder) as shards:
        assert shards.headers() == {"a": Header("I8", (2, 3))}
