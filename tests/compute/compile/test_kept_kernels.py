"""Kernels in the compile cache that a crash, a full disk or a bad block broke are compiled again,
and those of other processes are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from predictors.compute.compile.kept_kernels import SEAL, drop_broken, seal
from tests.compute.compile.test_compile_cache import FORGOTTEN, KERNEL, child
from tests.fakes import PATIENCE_S

Damage = Callable[[bytes], bytes]
DAMAGE: dict[str, Damage] = {
    "cut short": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "a flipped bit": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "other bytes": lambda raw: bytes(range(1, 256)),
}
FILES = ("k.cubin", "k.json", "__grp__k.json")


def kernel(triton: Path, name: str = "ABC") -> Path:
    folder = triton / name
    folder.mkdir(parents=True)
    (folder / "k.cubin").write_bytes(b"\x7fELF code")
    (folder / "k.json").write_text(json.dumps({"num_warps": 4}))
    (folder / "__grp__k.json").write_text(json.dumps({"child_paths": {}}))
    return folder


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_sealed_kernel_that_was_damaged_is_dropped(
    tmp_path: Path, damage: Damage, file: str
) -> None:
    sound, broken = kernel(tmp_path, "A"), kernel(tmp_path, "B")
    seal(tmp_path)
    assert drop_broken(tmp_path) == 0
    (broken / file).write_bytes(damage((broken / file).read_bytes()))
    assert drop_broken(tmp_path) == 1
    assert not broken.exists()
    assert (sound / SEAL).exists()


def test_a_sealed_kernel_without_one_of_its_files_or_with_a_broken_seal_is_dropped(
    tmp_path: Path,
) -> None:
    (first, second) = kernel(tmp_path, "A"), kernel(tmp_path, "B")
    seal(tmp_path)
    (first / "k.cubin").unlink()
    (second / SEAL).write_bytes(b"\xff")
    assert drop_broken(tmp_path) == 2


def test_an_unsealed_kernel_goes_if_it_looks_broken_and_stays_if_it_may_still_grow(
    tmp_path: Path,
) -> None:
    growing, empty, cut = (kernel(tmp_path, name) for name in "ABC")
    (growing / "__grp__k.json").unlink()  # comes last
    (growing / "tmp.pid_1").mkdir()  # where Triton writes a file before it appears
    (empty / "k.cubin").write_bytes(b"")
    (cut / "k.json").write_text('{"num_w')
    assert drop_broken(tmp_path) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["A"]


def test_a_file_that_came_after_the_seal_is_no_damage(tmp_path: Path) -> None:
    folder = kernel(tmp_path)
    seal(tmp_path)
    (folder / "k.ptx").write_text("more")
    assert drop_broken(tmp_path) == 0


def test_without_a_folder_nothing_is_sealed_or_dropped(tmp_path: Path) -> None:
    seal(tmp_path / "none")
    assert drop_broken(tmp_path / "none") == 0


def test_a_start_compiles_a_broken_kernel_again_and_the_next_finds_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert child(KERNEL, kept)[:2] == [1, 0]
    for file in kept.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert child(KERNEL, kept)[:2] == [1, 0]
    assert child(KERNEL, kept)[:2] == [0, 1]


def test_without_room_for_code_a_start_compiles_elsewhere(tmp_path: Path) -> None:
    limited = ["prlimit", f"--fsize={2**20}", sys.executable, "-c", KERNEL, str(tmp_path / "kept")]
    environ = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    done = subprocess.run(
        limited, env=environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled, cached, place = json.loads(done.stdout)
    assert (compiled, cached) == (1, 0)
    assert not Path(place).is_relative_to(tmp_path)
    assert "has no room for 32 MiB" in done.stderr
