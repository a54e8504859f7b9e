"""The verb `keys`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from predictors import __main__ as root
from predictors.protocol.key_file import digest_of, read_keys
from predictors.protocol.keys import ApiKeys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(file: Path, action: str, *arguments: str) -> int:
    return root.main(["keys", action, *arguments, "--file", str(file)])


def added(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The key that `keys add` prints."""
    capsys.readouterr()
    assert run(file, "add", *arguments) == 0
    out, err = capsys.readouterr()
    assert "the only time" in err
    (key,) = out.splitlines()
    assert key not in err
    return key


def test_add_prints_the_key_once_and_writes_its_hash(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = added(file, capsys, "ann", "--weight", "2", "--models", "flux,qwen", "--max-jobs", "3")
    (found,) = read_keys(file.read_bytes())
    assert (found.name, found.weight, found.max_jobs) == ("ann", 2.0, 3)
    assert found.models == frozenset({"flux", "qwen"})
    assert found.digest == digest_of(key)
    assert key not in file.read_text()
    assert ApiKeys([found]).find(key) == found
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_keeps_its_mode_and_its_other_keys(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added(file, capsys, "ann")
    file.chmod(0o640)
    added(file, capsys, "bob", "--expires", "2030-01-01", "--requests-per-minute", "60")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [key.name for key in read_keys(file.read_bytes())] == ["ann", "bob"]
    assert [entry.name for entry in file.parent.iterdir()] == ["keys.json"]


def test_a_rotated_key_has_the_same_terms_and_the_old_one_ends_with_remove(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = added(file, capsys, "ann", "--weight", "3", "--expires", "2030-01-01")
    new = added(file, capsys, "ann", "--rotate")
    keys = read_keys(file.read_bytes())
    assert [key.weight for key in keys] == [3.0, 3.0]
    assert keys[1].expires > keys[0].expires
    assert all(ApiKeys(keys).find(key) for key in (old, new))
    assert run(file, "remove", "ann", "--old") == 0
    keys = read_keys(file.read_bytes())
    assert [bool(ApiKeys(keys).find(key)) for key in (old, new)] == [False, True]


def test_list_shows_names_and_limits_and_no_hashes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added(file, capsys, "ann", "--engine-seconds-per-minute", "30")
    added(file, capsys, "bob", "--models", "flux", "--expires", "2020-01-01T00:00:00Z")
    assert run(file, "list") == 0
    ann, bob = capsys.readouterr().out.splitlines()
    assert ann == "ann: weight 1; models all; engine seconds per minute 30"
    assert bob == "bob: weight 1; models flux; expired 2020-01-01 00:00:00 UTC"


REFUSED = [
    (["add", "ann"], "there is a key with the name 'ann'"),
    (["add", "bob", "--rotate"], "--rotate takes the name of a key in the file"),
    (["add", "ann", "--rotate", "--weight", "2"], "no terms but --expires"),
    (["add", "a b"], "name must be"),
    (["add", "bob", "--weight", "0"], "weight must be"),
    (["add", "bob", "--max-jobs", "many"], "max-jobs must be"),
    (["add", "bob", "--expires", "soon"], "expires must be"),
    (["add", "bob", "--models", ","], "models must be"),
    (["remove", "bob"], "there is no key with the name 'bob'"),
    (["remove", "ann"], "it is the last key"),
    (["remove", "ann", "--old"], "has one key only"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_makes_no_sense_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    added(file, capsys, "ann")
    before = file.read_bytes()
    assert run(file, arguments[0], *arguments[1:]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert file.read_bytes() == before


def test_a_file_that_is_none_is_refused_and_kept(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, "list") == 2
    assert "can't be read: No such file" in capsys.readouterr().err
    file.write_text("mine")
    for action in (["add", "ann"], ["list"], ["remove", "ann"]):
        assert run(file, *action) == 2
        assert "is not JSON: line 1" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert run(file / "x", "add", "ann") == 2


def test_the_verb_needs_neither_torch_nor_kserve() -> None:
    code = (
        "import sys; from predictors.__main__ import main; "
        "main(['keys', 'list', '--file', '/nonexistent']); "
        "sys.exit(bool({'torch', 'kserve', 'grpc'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--grpc-port=-1"]])
def test_serve_off_loopback_ends_at_once_without_keys(arguments: list[str], tmp_path: Path) -> None:
    environ = {**os.environ, "HOST": "0.0.0.0"}
    command = [sys.executable, "-m", "predictors", "serve", f"--model=a={tmp_path}", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "HOST is '0.0.0.0'" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_bad_keys_file_before_anything_else(file: Path, tmp_path: Path) -> None:
    file.write_text('{"keys": [{"name": "ann", "sha256": "no"}]}')
    environ = {**os.environ, "HOST": "0.0.0.0", "PREDICTORS_ACCESS_KEYS_FILE": str(file)}
    command = [sys.executable, "-m", "predictors", "serve", f"--model=a={tmp_path}"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "keys[0].sha256" in done.stderr
    assert str(file) not in done.stderr
