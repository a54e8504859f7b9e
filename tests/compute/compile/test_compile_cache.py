"""Compiled code is stored in the chosen folder, found by the next process, and never stops a
start."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.compute.compile import compile_cache
from predictors.compute.compile.compile_cache import (
    Bundle,
    digest,
    keep_compiled_code,
    machine_folder,
    machine_key,
)
from predictors.compute.device.placement import keep_code, place
from predictors.settings import ComputeSettings

CPU = torch.device("cpu")
QUICK = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_VEC_ISA_OK": "1"}
"""Without a pool of compilers for one graph, and without a test of the compiler."""
FORGOTTEN = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_INTERPRET")


def child(code: str, *arguments: object, environ: Mapping[str, str] | None = None) -> Any:
    """The last line that `code` prints, as JSON, in a process that can't override file
    permissions."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere, and setpriv is not installed")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    base = {k: v for k, v in os.environ.items() if k not in FORGOTTEN} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=base | dict(environ or {}), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def forbid_writing(folder: Path, is_forbidden: bool) -> None:
    """Change the mode of a folder and of everything in it."""
    for each in (folder, *folder.rglob("*")):
        mode = each.stat().st_mode
        each.chmod(mode & ~0o222 if is_forbidden else mode | 0o200)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No folder is chosen yet, and the environment is restored afterwards."""
    monkeypatch.setattr(compile_cache, "_decided", {})
    for name in FORGOTTEN[:2]:
        monkeypatch.setenv(name, "")  # remembered, so that it is put back if the code sets it
        monkeypatch.delenv(name)
    return monkeypatch


# -- where --------------------------------------------------------------------------------------


def test_without_a_folder_nothing_changes(undecided: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    assert keep_compiled_code("", CPU, os.environ) is None
    assert dict(os.environ) == before


def test_both_libraries_use_the_machines_folder(
    undecided: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = keep_compiled_code(str(tmp_path / "kept"), CPU, os.environ)
    assert folder == tmp_path / "kept" / machine_key(CPU)
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")


def test_a_variable_set_by_the_operator_stays_and_is_logged(
    undecided: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undecided.setenv("TRITON_CACHE_DIR", "/his/own")
    with caplog.at_level(logging.INFO):
        folder = keep_compiled_code(str(tmp_path), CPU, os.environ)
    assert folder is not None
    assert os.environ["TRITON_CACHE_DIR"] == "/his/own"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    assert "TRITON_CACHE_DIR=/his/own was set and stays" in caplog.text


def test_torchs_default_folder_is_replaced(undecided: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    undecided.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    folder = keep_compiled_code(str(tmp_path), CPU, os.environ)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{folder}/inductor"


def test_a_second_model_shares_the_folder_of_the_first(
    undecided: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = keep_compiled_code(str(tmp_path / "a"), CPU, os.environ)
    assert keep_compiled_code(str(tmp_path / "a"), CPU, os.environ) == first
    assert not caplog.records
    assert keep_compiled_code(str(tmp_path / "b"), CPU, os.environ) == first
    assert f"not to {tmp_path / 'b'}" in caplog.text


@pytest.mark.parametrize("level", [".", "machine"])
def test_a_folder_that_anyone_may_write_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    (tmp_path / "machine").mkdir()
    assert machine_folder(tmp_path, "machine") == tmp_path / "machine"
    (tmp_path / level).chmod(0o777)
    assert machine_folder(tmp_path, "machine") is None
    assert "anybody may write" in caplog.text


def test_a_file_in_place_of_the_folder_is_a_warning(
    undecided: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert keep_compiled_code(str(tmp_path / "file"), CPU, os.environ) is None
    assert "no compiled code is kept" in caplog.text
    assert "TRITON_CACHE_DIR" not in os.environ


def test_an_open_umask_does_not_open_the_folders(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = machine_folder(tmp_path, "machine")
    finally:
        os.umask(before)
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o755


# -- keys ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    heads: int
    folder: Path


def test_equal_parts_have_equal_keys_in_any_folder() -> None:
    here = {"b": Config(2, Path("/here")), "a": (1, torch.bfloat16), "c": frozenset({"x", "y"})}
    there = {"c": frozenset({"y", "x"}), "a": [1, torch.bfloat16], "b": Config(2, Path("/there"))}
    assert digest(here) == digest(there)
    assert digest(here) != digest(here | {"b": Config(3, Path("/here"))})
    assert digest(here) != digest(here | {"a": (1, torch.float16)})


def test_a_part_whose_text_differs_between_processes_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no text"):
        digest({"a": object()})


def test_versions_and_the_processor_are_in_the_machines_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = machine_key(CPU)
    assert key == machine_key(CPU)
    monkeypatch.setattr(torch, "__version__", "0.0")
    older = machine_key(CPU)
    monkeypatch.setattr(compile_cache, "_cpu_flags", lambda: "flags: none")
    assert len({key, older, machine_key(CPU)}) == 3


# -- bundles ------------------------------------------------------------------------------------


def written(bundle: Bundle, content: bytes) -> Path:
    """A bundle's file as `save` would write it."""
    file = bundle._file
    assert file is not None
    compile_cache._write(file, bundle._head(content) + content)
    return file


def artifacts(**named: bytes) -> bytes:
    """torch's form of artifacts of its profile cache, the simplest kind."""
    from torch.compiler._cache import CacheArtifactManager

    with CacheArtifactManager.with_fresh_cache():
        for key, content in named.items():
            CacheArtifactManager.record_artifact("inductor", key, content)
        saved = torch.compiler.save_cache_artifacts()
    assert saved is not None
    return saved[0]


def test_without_a_folder_no_file_is_written() -> None:
    bundle = Bundle(None, {})
    assert (bundle.exists, bundle.load(), bundle.save()) == (False, False, False)


def test_without_compilations_no_file_is_written(tmp_path: Path) -> None:
    from torch.compiler._cache import CacheArtifactManager

    with CacheArtifactManager.with_fresh_cache():
        assert not Bundle(tmp_path, {}).save()
    assert list(tmp_path.iterdir()) == []


def test_saved_artifacts_are_given_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codecache import FxGraphCache
    from torch.compiler._cache import CacheArtifactManager

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    bundle = Bundle(tmp_path, {"model": 1})
    with CacheArtifactManager.with_fresh_cache():
        CacheArtifactManager.record_artifact("inductor", "fabc", b"graph")
        assert bundle.save()
    assert bundle.exists
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert Bundle(tmp_path, {"model": 1}).load()
    (graph,) = Path(FxGraphCache._get_tmp_dir_for_key("fabc")).iterdir()
    assert graph.read_bytes() == b"graph"
    assert not Bundle(tmp_path, {"model": 2}).exists


BROKEN = {
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "of another kind": lambda content: b"x" * 10_000,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_bundle_is_a_cold_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    bundle = Bundle(tmp_path, {})
    file = written(bundle, artifacts(fabc=b"graph"))
    file.write_bytes(BROKEN[how](file.read_bytes()))
    assert not bundle.load()
    assert f"{file} is not used" in caplog.text


def test_an_intact_bundle_that_torch_cannot_read_is_a_cold_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle(tmp_path, {})
    file = written(bundle, b"what another version of torch may write")
    assert not bundle.load()
    assert f"{file} is not used: torch can't read it" in caplog.text


def test_another_models_bundle_is_a_cold_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = written(Bundle(tmp_path, {"model": 1}), artifacts(fabc=b"graph"))
    bundle = Bundle(tmp_path, {"model": 2})
    shutil.copy(foreign, str(bundle._file))
    assert not bundle.load()
    assert "another model's" in caplog.text


def test_a_bundle_that_anyone_may_write_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle(tmp_path, {})
    written(bundle, artifacts(fabc=b"graph")).chmod(0o666)
    assert not bundle.load()
    assert "anybody may write it" in caplog.text


def test_a_bundle_over_the_bound_is_neither_read_nor_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.compiler._cache import CacheArtifactManager

    bundle = Bundle(tmp_path, {})
    file = written(bundle, artifacts(fabc=b"graph" * 100))
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 500)
    assert not bundle.load()
    file.unlink()
    with CacheArtifactManager.with_fresh_cache():
        CacheArtifactManager.record_artifact("inductor", "fabc", b"graph" * 100)
        assert not bundle.save()
    assert not bundle.exists
    assert caplog.text.count("bytes are too many") == 2


def test_a_bundle_that_cannot_be_written_is_a_warning_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.compiler._cache import CacheArtifactManager

    bundle = Bundle(tmp_path, {})
    Path(str(bundle._file)).mkdir()  # nothing can be renamed to a folder
    with CacheArtifactManager.with_fresh_cache():
        CacheArtifactManager.record_artifact("inductor", "fabc", b"graph")
        assert not bundle.save()
    assert "is not written" in caplog.text
    assert list(tmp_path.iterdir()) == [bundle._file]


# -- processes ----------------------------------------------------------------------------------

KERNEL = """
import json, os, sys, torch
from predictors.compute.compile.compile_cache import Bundle, keep_compiled_code
from predictors.compute.compile.start import Start
folder = keep_compiled_code(sys.argv[1], torch.device("cpu"), os.environ)
start = Start("kernels", Bundle(folder, {}), has_kernels=True)
start.begin()
from tests.compute.compile.hopper_kernel import compile_for
compile_for(32)
found = start.end()
print(json.dumps([found.compiled, found.cached, os.environ["TRITON_CACHE_DIR"]]))
"""


def test_a_kernel_is_read_from_disk_by_the_next_process_and_from_a_copy_if_it_may_not_write(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    compiled, cached, place = child(KERNEL, kept)
    assert (compiled, cached) == (1, 0)
    assert Path(place).is_relative_to(kept)
    assert child(KERNEL, kept) == [0, 1, place]
    assert not list(kept.rglob("*.bundle"))  # nothing of torch.compile
    moved = kept.rename(tmp_path / "moved")
    before = sorted(moved.rglob("*"))
    forbid_writing(moved, True)
    try:
        compiled, cached, place = child(KERNEL, moved)
    finally:
        forbid_writing(moved, False)
    assert (compiled, cached) == (0, 1)
    assert not Path(place).is_relative_to(tmp_path)
    assert not Path(place).parent.exists()  # the process took it along
    assert sorted(moved.rglob("*")) == before


def test_an_empty_read_only_folder_is_a_cold_start(tmp_path: Path) -> None:
    forbid_writing(tmp_path, True)
    try:
        own = {"TRITON_CACHE_DIR": str(tmp_path.with_name("own"))}
        compiled, cached, _ = child(KERNEL, tmp_path, environ=own)
    finally:
        forbid_writing(tmp_path, False)
    assert (compiled, cached) == (1, 0)


GRAPH = """
import json, os, sys, torch
from torch._dynamo.utils import counters
from torch._inductor import config
config.cpp_cache_precompile_headers = False  # one graph is compiled faster without
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import compiled
from predictors.compute.device.placement import keep_code, place
from predictors.compute.compile.start import Start
from predictors.settings import ComputeSettings
settings = ComputeSettings(device="cpu", compile="inductor", cache_dir=sys.argv[1])
keep_code(settings, os.environ)
placement = place(settings)
start = Start("graphs", Bundle(placement.cache, {}), has_kernels=False)
start.begin()
unit = compiled(lambda x: x.sin() + 1, placement, "wave")
with torch.inference_mode():
    unit(torch.ones(8))
found = start.end()
counts = counters["inductor"]
print(json.dumps([found.kind, counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"]]))
"""


@pytest.mark.compiler
def test_inductors_graphs_are_compiled_once_and_not_by_a_start_that_may_not_write(
    tmp_path: Path,
) -> None:
    """One folder for all that is asked: a cold start costs half a minute."""
    compiler, calls = tmp_path / "c++", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    environ = QUICK | {"CXX": str(compiler)}
    kept = tmp_path / "kept"
    assert child(GRAPH, kept, environ=environ) == ["cold", 0, 1]
    assert "-shared" in calls.read_text()
    libraries = sorted(kept.rglob("*.so"))
    (bundle,) = kept.rglob("*.bundle")
    modified = bundle.stat().st_mtime_ns
    calls.write_text("")  # versions and headers are asked for in any case
    assert child(GRAPH, kept, environ=environ) == ["warm", 1, 0]
    assert sorted(kept.rglob("*.so")) == libraries
    assert bundle.stat().st_mtime_ns == modified  # nothing new, nothing written
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*")}
    forbid_writing(kept, True)
    try:
        assert child(GRAPH, kept, environ=environ) == ["warm", 1, 0]
        assert {file: file.stat().st_mtime_ns for file in kept.rglob("*")} == before
    finally:
        forbid_writing(kept, False)
    for leaf in ("fxgraph", "aotautograd"):
        shutil.rmtree(bundle.parent / "inductor" / leaf)
    assert child(GRAPH, kept, environ=environ) == ["warm", 1, 0]  # from the bundle
    assert "-shared" not in calls.read_text()


def test_a_placement_has_the_folder_after_keep_code(
    undecided: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, environ = ComputeSettings(device="cpu"), dict[str, str]()
    keep_code(settings, environ)
    assert (place(settings).cache, environ) == (None, {})
    keep_code(dataclasses.replace(settings, cache_dir=str(tmp_path)), environ)
    folder = tmp_path / machine_key(CPU)
    assert place(settings).cache == folder
    assert environ["TRITON_CACHE_DIR"] == str(folder / "triton")
