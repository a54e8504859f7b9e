"""`--json` of every verb that has a report: one JSON document on standard output, also of a
failure, whose exit code it repeats."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from predictors.__main__ import VERBS, main
from predictors.cli.arguments import GRAMMAR, make_parser
from predictors.cli.completion import flags_of, subparsers
from predictors.cli.outcomes import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
FLUX = ROOT / "checkpoints" / "shapes-flux"
WITHOUT_A_REPORT = {"serve", "activator", "completion"}
"""One has a log, in JSON with `--log-format json`; the other prints a shell's script."""


def report_of(capsys: pytest.CaptureFixture[str], *argv: str, exit_code: int = 0) -> Any:
    """The verb's output, which must be one JSON document."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parser, or those of its actions."""
    return list(subparsers(parser).values()) or [parser]


@pytest.mark.parametrize("verb", sorted(GRAMMAR.keys() - WITHOUT_A_REPORT))
def test_every_verb_with_a_report_has_the_flag(verb: str) -> None:
    for parser in leaves(subparsers(make_parser(VERBS))[verb]):
        assert "--json" in flags_of(parser)


def test_keys_are_made_listed_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ("--file", str(tmp_path / "keys.json"))
    terms = ("--weight", "2", "--models", "b,a", "--expires", "2020-01-31")
    made = report_of(capsys, "keys", "add", "ann", *terms, *file)
    assert made["key"].startswith("vpk_")
    other = report_of(capsys, "keys", "add", "bob", *file)
    assert other["key"] != made["key"]
    ann, bob = report_of(capsys, "keys", "list", *file)["keys"]
    assert ann == {name: value for name, value in made.items() if name != "key"}
    assert (ann["weight"], ann["models"], ann["is_expired"]) == (2.0, ["a", "b"], True)
    assert ann["expires"] == "2020-01-31T00:00:00Z"
    assert (bob["models"], bob["expires"], bob["max_jobs"]) == (None, None, None)
    removed = report_of(capsys, "keys", "remove", "ann", *file)
    assert removed == {"name": "ann", "removed": 1, "kept": 0}


def test_a_quantised_copy_says_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(capsys, "quantize", str(FLUX), str(tmp_path / "narrow"))
    (stored,) = (tmp_path / "narrow" / "transformer").glob("*.safetensors")
    assert report["target"] == str(tmp_path / "narrow")
    assert 0 < report["transformer_bytes"] < stored.stat().st_size


NOWHERE = ("/nowhere", "/nowhere/made")
REFUSED = {
    "warm": ("--model", "a=/nowhere"),
    "profile": ("--model", "a=/nowhere"),
    "check": ("/nowhere",),
    "quantize": NOWHERE,
    "convert": (*NOWHERE, "--base", "/nowhere"),
    "keys": ("list", "--file", "/nowhere"),
    "demo": ("--lora", "no path"),
    "draw": ("a", "-o", "a.gif"),
    "ask": ("/nowhere", "what?"),
    "bench": ("http://127.0.0.1:1", "--goodput", "soon"),
    "status": ("--kubeconfig", "/nowhere"),
    "smoke": ("ftp://a",),
}


@pytest.mark.parametrize("verb", sorted(GRAMMAR.keys() - WITHOUT_A_REPORT))
def test_a_failure_is_an_object_with_the_exit_code(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictors.__main__.logs.configure_logging", lambda *_, **__: None)
    code = main([verb, *REFUSED[verb], "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == code == 2
    assert error["message"]


def test_every_exit_code_is_on_the_page() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page
