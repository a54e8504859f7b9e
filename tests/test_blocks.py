"""Every code block of every page is run by a test (`tests/blocks.py` says by which), or read here:
shells, JSON and YAML by their parsers, Python by mypy, and commands of `predictors` and make by
what these take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.blocks import ROOT, RUN_BY, Block, all_blocks

LANGUAGES = {"", "console", "javascript", "json", "python", "sh", "yaml"}
ONLY_READ = [block for block in all_blocks() if (block.page, block.language) not in RUN_BY]
COMMAND = re.compile(r"(?:\.venv/bin/|python -m )?predictors\s+([a-z][a-z-]*)\s*(.*)")


def only(language: str) -> list[Block]:
    return [block for block in ONLY_READ if block.language == language]


def shell_of(block: Block) -> str:
    """A block without its prompts; a session without its output."""
    if re.search(r"^\$ ", block.text, re.MULTILINE):
        lines = re.findall(r"^\$ ((?:.*\\\n)*.*)", block.text, re.MULTILINE)
        return "\n".join(lines)
    return block.text


def test_every_block_is_of_a_language_that_is_checked() -> None:
    assert {block.language for block in all_blocks()} <= LANGUAGES


def test_every_page_whose_blocks_are_run_has_such_blocks_and_a_test_that_names_it() -> None:
    there = {(block.page, block.language) for block in all_blocks()}
    for (page, language), test in RUN_BY.items():
        assert (page, language) in there, page
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(page).name in text or "RUN_BY" in text, test


SHELLS = [*only("sh"), *only("console")]


@pytest.mark.parametrize("block", SHELLS, ids=str)
def test_a_shell_block_is_a_shell_script(block: Block) -> None:
    ran = subprocess.run(
        ["bash", "-n"], input=shell_of(block), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@cache
def options_of(verb: str) -> set[str]:
    """The options that a verb of the command line takes."""
    command = [sys.executable, "-m", "predictors", *verb.split(), "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(re.findall(r"--[a-z][a-z-]*", ran.stdout))


def test_every_command_of_the_command_line_has_its_options() -> None:
    for block in all_blocks():
        if block.language not in ("sh", "console"):
            continue
        for line in shell_of(block).replace("\\\n", " ").splitlines():
            for verb, rest in COMMAND.findall(line.split("#")[0]):
                if re.search(r"helm|kubectl", line.split(verb)[0]):
                    continue
                call = re.split(r"\s(?:\||&&|;|>)\s", rest)[0]
                sub = f"{verb} {call.split()[0]}" if verb == "keys" else verb
                given = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", call))
                assert given <= options_of(sub), f"{block}: {sub} {given - options_of(sub)}"


def test_every_make_target_of_a_block_exists() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in all_blocks():
        if block.language in ("sh", "console"):
            named = re.findall(r"^\$? ?make ([a-z][a-z-]*)", block.text, re.MULTILINE)
            assert set(named) <= made, block


@pytest.mark.parametrize("block", only("yaml"), ids=str)
def test_a_yaml_block_is_yaml(block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", only("json"), ids=str)
def test_a_json_block_is_json(block: Block) -> None:
    text = block.text.strip()
    json.loads(text if text.startswith(("{", "[")) else "{" + text + "}")


def test_python_blocks_that_are_not_run_have_types_and_names(tmp_path: Path) -> None:
    blocks = only("python")
    assert blocks
    for number, block in enumerate(blocks):
        (tmp_path / f"block_{number}.py").write_text(block.text, encoding="utf-8")
    flags = ["--ignore-missing-imports", "--follow-imports=skip", "--no-incremental"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", *flags, "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{[str(block) for block in blocks]}\n{ran.stdout}"
