"""Every byte reaches its place for any split, and errors in a thread are raised."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictors.compute.checkpoint.staging import Extent, fill, split_extent
from predictors.errors import EngineFailed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BEGIN = 5  # bytes of a file that are not the tensor's


def stored(tmp_path: Path, values: torch.Tensor, name: str = "w") -> Path:
    """A file with `values` (float32) after `BEGIN` other bytes."""
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(b"x" * BEGIN + values.numpy().tobytes())
    return file


def extent(file: Path, target: torch.Tensor, name: str = "w") -> Extent:
    return Extent(target, file, BEGIN, torch.float32, name)


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(1, 200))
def test_pieces_are_small_enough_and_cover_everything_once(shape: list[int], most: int) -> None:
    count = torch.zeros(shape, dtype=torch.int32)
    at = 0
    for piece in split_extent(Extent(count, Path("f"), 0, torch.float32, "w"), most):
        assert 0 < piece.num_bytes <= max(most, 4)
        assert piece.offset == at  # row-major: one after the other
        at += piece.num_bytes
        piece.target.add_(1)
    assert at == count.numel() * 4
    assert torch.equal(count, torch.ones_like(count))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("buffer_bytes", [4, 100, 4096, 2**20])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_the_result_does_not_depend_on_buffers_and_readers(
    tmp_path: Path, device: str, buffer_bytes: int, num_readers: int
) -> None:
    values = torch.randn(7, 5, 9)
    file = stored(tmp_path, values)
    whole = torch.zeros(7, 5, 9, device=device)
    narrow = torch.zeros(7, 5, 9, dtype=torch.float16, device=device)
    strided = torch.zeros(9, 5, 7, device=device).permute(2, 1, 0)
    fill([extent(file, t) for t in (whole, narrow, strided)], num_readers, buffer_bytes)
    assert torch.equal(whole.cpu(), values)
    assert torch.equal(narrow.cpu(), values.half())
    assert torch.equal(strided.cpu(), values)


def test_several_files_or_no_extents_can_be_read(tmp_path: Path) -> None:
    fill([])
    targets = [torch.zeros(100) for _ in range(3)]
    files = [stored(tmp_path, torch.full((100,), float(i)), f"f{i}") for i in range(3)]
    fill([extent(f, t) for f, t in zip(files, targets, strict=True)], buffer_bytes=64)
    assert [t.unique().item() for t in targets] == [0, 1, 2]


def test_a_file_that_shrank_since_it_was_opened_is_named_without_its_path(
    tmp_path: Path,
) -> None:
    file = stored(tmp_path, torch.zeros(100))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineFailed, match=r"w\.safetensors ends within tensor w") as failure:
        fill([extent(file, torch.zeros(100))], num_readers=2, buffer_bytes=64)
    assert str(tmp_path) not in failure.value.message
    assert not [t for t in threading.enumerate() if t.name.startswith("weights")]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"gone\.safetensors can't be opened") as failure:
        fill([extent(tmp_path / "gone.safetensors", torch.zeros(1))])
    assert str(tmp_path) not in failure.value.message


def test_a_failed_reader_stops_the_others(tmp_path: Path) -> None:
    short = stored(tmp_path, torch.zeros(1), "a")
    full = stored(tmp_path, torch.ones(10_000), "b")
    target = torch.zeros(10_000)
    with pytest.raises(EngineFailed, match="ends within tensor first"):
        fill(
            [extent(short, torch.zeros(8), "first"), extent(full, target, "second")],
            num_readers=1,
            buffer_bytes=64,
        )
    assert not target.any()


def test_a_folder_in_place_of_a_file_is_a_failure_with_the_tensors_name(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="can't be read at tensor w"):
        fill([extent(tmp_path, torch.zeros(1))])


@pytest.mark.gpu
def test_the_current_stream_sees_the_values_after_earlier_work(
    tmp_path: Path,
) -> None:
    values = torch.randn(2**22)
    file = stored(tmp_path, values)
    target = torch.empty(2**22, device="cuda")
    for _ in range(20):
        torch.cuda._sleep(20_000_000)
        target.zero_()  # must not land after the file's bytes
        fill([extent(file, target)], buffer_bytes=2**20)
        doubled = target * 2
        assert torch.equal(doubled.cpu(), values * 2)
