"""Values of flags, and the messages for wrong ones."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from predictors.__main__ import main
from predictors.cli.arguments import GRAMMAR, make_parser, new_file, read_file
from predictors.cli.foreign_flags import INSTEAD, advice_of
from predictors.cli.named_values import named_aliases, named_value
from predictors.errors import InvalidRequest
from predictors.settings import Settings, variable_name


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("a=512", 512), ("a=0.5", 0.5), ("a=true", True), ("a=high", "high"), ('a="7"', "7"),
        ("a=", ""), ("a=b=c", "b=c"),
    ],
)  # fmt: skip
def test_a_parameter_is_json_or_else_text(raw: str, value: object) -> None:
    name, found = named_value(raw)
    assert (name, found, type(found)) == ("a", value, type(value))


@pytest.mark.parametrize(
    ("aliases", "models", "whole"),
    [
        (["gpt-4o"], ["q=/x"], ["gpt-4o=q"]),
        (["gpt-4o=q", "b"], ["q=/x"], ["gpt-4o=q", "b=q"]),
        (["q"], ["q=/x"], []),
        (["gpt-4o"], ["q=/x", "f=/y"], ["gpt-4o"]),
    ],
)
def test_an_alias_alone_is_one_of_the_only_model(
    aliases: list[str], models: list[str], whole: list[str]
) -> None:
    assert named_aliases(aliases, models) == whole


@pytest.mark.parametrize("raw", ["a", "=5", "a=[1]", "a=null", "a={}"])
def test_a_parameter_without_a_name_or_with_a_whole_object_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="--parameter"):
        named_value(raw)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "checkpoints/flux"], "arguments: checkpoints/flux; models are given as --model"),
        (
            ["serve", "--max-model-len", "4096", "--dtype=bfloat16", "--model", "a=b"],
            "arguments: --max-model-len 4096 --dtype=bfloat16; --max-model-len: set "
            "PREDICTORS_QWEN_VL_MAX_CONTEXT; --dtype: set PREDICTORS_COMPUTE_DTYPE",
        ),
        (["serve", "--mine", "--model", "a=b"], "--mine; models are given as --model NAME=PATH"),
        (["draw", "x", "-o", "x.png", "extra"], "unrecognized arguments: extra\n"),
        (["draw", "x", "--steps", "0"], "--steps: must be a whole number above 0, not '0'"),
        (["draw", "x", "--steps", "two"], "--steps: must be a whole number above 0, not 'two'"),
        (["draw", "x", "--timeout", "nan"], "--timeout: must be a number above 0, not 'nan'"),
        (["bench", "u", "--rounds", "1"], "--rounds: must be a whole number of at least 2, not"),
    ],
)
def test_a_wrong_command_line_is_answered_in_words_of_the_caller(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_flags_of_other_servers_lead_to_flags_and_settings_that_there_are() -> None:
    parser = make_parser(dict.fromkeys(GRAMMAR, main))  # type: ignore[arg-type]
    assert advice_of([]) == advice_of(["x", "-q"]) == ""
    for flag, instead in INSTEAD.items():
        assert advice_of([f"--{flag.replace('-', '_')}=1"]).endswith(instead)
        for name in re.findall("PREDICTORS_[A-Z0-9_]+", instead):
            assert name in every_variable(), (flag, name)
        with pytest.raises(SystemExit):
            parser.parse_args(["serve", "--model", "a=b", f"--{flag}"])


def every_variable() -> set[str]:
    return {
        variable_name(type(getattr(Settings(), group.name)), knob.name)
        for group in fields(Settings)
        for knob in fields(getattr(Settings(), group.name))
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    assert read_file(tmp_path / "x") == b"1"
    with pytest.raises(InvalidRequest, match=r"'/.*/y' can't be read: No such file"):
        read_file(tmp_path / "y")


def test_a_disk_that_fills_up_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with new_file(tmp_path / "x.png") as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InvalidRequest, match=r"x.png' can't be written: No space left on device"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_a_report_that_finds_no_room_ends_with_a_sentence() -> None:
    command = [sys.executable, "-m", "predictors", "completion", "bash"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "error: a file can't be written: No space left on device\n"


def test_a_new_file_exists_only_after_success(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x"
    with new_file(path) as file:
        file.write(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    with pytest.raises(ZeroDivisionError), new_file(path) as file:  # noqa: PT012
        file.write(b"2")
        raise ZeroDivisionError
    assert path.read_bytes() == b"1"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("wrong", ["folder", "below a file"])
def test_a_path_that_cannot_be_written_is_refused_first(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path if wrong == "folder" else tmp_path / "file" / "x"
    with pytest.raises(InvalidRequest, match="can't be written"), new_file(path):
        raise AssertionError("the block was entered")
