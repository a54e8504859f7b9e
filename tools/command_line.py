"""Generates docs/command-line.md from the parser of the command line and the prose in
tools/command_line.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from predictors.__main__ import VERBS
from predictors.cli.arguments import make_parser
from predictors.cli.completion import helps_of, subparsers
from predictors.cli.outcomes import EXIT_CODES

PAGE = Path(__file__).resolve().parents[1] / "docs/command-line.md"
PROSE = Path(__file__).with_suffix(".md")


def files() -> dict[Path, str]:
    parser = make_parser(VERBS)
    text = PROSE.read_text(encoding="utf-8")
    text = text.replace("<!-- exit codes -->\n", "".join(exit_codes()))
    return {PAGE: text.replace("<!-- verbs -->\n", "".join(sections(parser)))}


def exit_codes() -> Iterator[str]:
    for code, meaning in EXIT_CODES.items():
        yield f"| {code} | {meaning} |\n"


def sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    for name, about in helps_of(parser).items():
        verb = subparsers(parser)[name]
        yield f"\n### {name}\n\n{sentence(verb.description or about)}\n\n"
        yield from table_of(verb)
        for action, sub in subparsers(verb).items():
            yield f"\n#### {name} {action}\n\n{sentence(helps_of(verb)[action])}\n\n"
            yield from table_of(sub)


def sentence(text: str) -> str:
    """One paragraph, in lines of at most 160 columns."""
    words, lines = " ".join(text.split()).split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 155:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    whole = "\n".join(lines)
    return whole[:1].upper() + whole[1:].removesuffix(".") + "."


def table_of(verb: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | |\n|---|---|\n"
    for action in verb._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = "" if action.nargs == 0 else str(value)
        if action.choices and not isinstance(action, argparse._SubParsersAction):
            value = "{" + ",".join(map(str, action.choices)) + "}"
        flags = ", ".join(f"`{flag} {value}`".replace(" `", "`") for flag in action.option_strings)
        shown = (flags or f"`{value}`").replace("|", "\\|")
        about = " ".join((action.help or "").split()).replace("|", "\\|")
        yield f"| {shown} | {about} |\n"
