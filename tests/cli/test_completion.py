"""The completion scripts have every verb and flag, and bash completes with them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from predictors.__main__ import VERBS, main
from predictors.cli.arguments import GRAMMAR, make_parser
from predictors.cli.completion import completion_script, flags_of, subparsers

PARSER = make_parser(VERBS)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["predictors", "be"], ["bench"]),
        (["predictors", "draw", "--st"], ["--steps"]),
        (["predictors", "draw", "--show", "k"], ["kitty"]),
        (["predictors", "keys", "a"], ["add"]),
        (["predictors", "completion", "z"], ["zsh"]),
        (["predictors", "bench", "http://x", "--kind", "i"], ["images"]),
        (["predictors", "nonsense", ""], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_completes_verbs_flags_and_values(
    words: list[str], found: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(completion_script(PARSER, "bash"))
    ask = (
        f'source "$0"; COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; _predictors; '
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p predictors'
    )
    command = ["bash", "--norc", "-c", ask, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *completed, registered = done.stdout.split("\n")[:-1]
    assert [each for each in completed if each] == found
    assert "-F _predictors predictors" in registered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_has_every_verb_and_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, verb in subparsers(PARSER).items():
        assert name in script
        for flag in flags_of(verb):
            assert (flag if shell != "fish" else flag.lstrip("-")) in script
    interpreter = shutil.which(shell)
    if interpreter:
        assert subprocess.run([interpreter, "-n", "-c", script]).returncode == 0


def test_every_verb_has_a_function_and_a_help() -> None:
    assert VERBS.keys() == GRAMMAR.keys()
    assert all(verb.__doc__ for verb in VERBS.values())
