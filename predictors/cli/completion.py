"""Completion scripts for bash, zsh and fish, generated from the parser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping

PROGRAM = "predictors"


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of verbs, or of a verb's actions, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def helps_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The one-line help of each subparser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {}


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flags of a parser, those of its actions among them."""
    found = {flag: action for action in parser._actions for flag in action.option_strings}
    for sub in subparsers(parser).values():
        found |= flags_of(sub)
    return found


def words_of(verb: argparse.ArgumentParser) -> list[str]:
    """The words that may come after a verb: its flags, actions and fixed positional values."""
    fixed = [
        str(choice)
        for action in verb._actions
        if not action.option_strings and action.choices
        for choice in action.choices
    ]
    return [*fixed, *flags_of(verb)]


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser)
    return "\n".join(lines) + "\n"


def _bash(parser: argparse.ArgumentParser) -> Iterator[str]:
    verbs = subparsers(parser)
    own = [flag for action in parser._actions for flag in action.option_strings]
    yield f'# completion for bash: eval "$({PROGRAM} completion bash)"'
    yield f"_{PROGRAM}() {{"
    yield '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words='
    yield "  COMPREPLY=()"
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"    words={shlex.quote(' '.join([*verbs, *own]))}"
    yield "  else"
    yield '    case "${COMP_WORDS[1]} $before" in'
    for name, verb in verbs.items():
        for flag, action in flags_of(verb).items():
            if action.choices:
                values = shlex.quote(" ".join(map(str, action.choices)))
                yield f"      {shlex.quote(f'{name} {flag}')}) words={values} ;;"
    for name, verb in verbs.items():
        yield f"      {shlex.quote(f'{name} ')}*) words={shlex.quote(' '.join(words_of(verb)))} ;;"
    yield "    esac"
    yield "  fi"
    yield '  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")'
    yield "}"
    yield f"complete -o default -F _{PROGRAM} {PROGRAM}"


def _zsh(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"#compdef {PROGRAM}"
    yield f"_{PROGRAM}() {{"
    yield "  local -a verbs"
    yield "  if (( CURRENT == 2 )); then"
    entries = [shlex.quote(f"{name}:{text}") for name, text in helps_of(parser).items()]
    yield f"    verbs=({' '.join(entries)})"
    yield "    _describe verb verbs"
    yield "    return"
    yield "  fi"
    yield '  case "${words[2]}" in'
    for name, verb in subparsers(parser).items():
        yield f"    {name}) compadd -- {' '.join(map(shlex.quote, words_of(verb)))} ;;"
    yield "  esac"
    yield "  _files"
    yield "}"
    yield f"compdef _{PROGRAM} {PROGRAM}"


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    start = f"complete -c {PROGRAM}"
    for name, text in helps_of(parser).items():
        yield f"{start} -n __fish_use_subcommand -f -a {name} -d {shlex.quote(text)}"
    for name, verb in subparsers(parser).items():
        within = f"{start} -n '__fish_seen_subcommand_from {name}'"
        for word in words_of(verb):
            if not word.startswith("-"):
                yield f"{within} -f -a {shlex.quote(word)}"
        for flag, action in flags_of(verb).items():
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            choices = shlex.quote(" ".join(map(str, action.choices or ())))
            values = f" -x -a {choices}" if action.choices else ""
            yield f"{within} {option}{values} -d {shlex.quote(str(action.help or ''))}"
