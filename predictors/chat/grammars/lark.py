"""Callers' context-free grammars: Lark's notation, or GBNF's, which is turned into it.

Only what describes text is taken: no tokens by number or name, no nested schemas, no options of
the library.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

from llguidance.gbnf_to_lark import gbnf_to_lark

from predictors.chat.grammars.patterns import check_pattern
from predictors.chat.grammars.schemas import MAX_LITERAL_CHARS
from predictors.errors import InvalidRequest, TooLarge

MAX_TIMES = 1000  # of one repetition
MAX_ALL_TIMES = 10**6  # of repetitions inside of one another, were they all
_PARTS = re.compile(
    r'(?P<string>"(?:[^"\\\n]|\\.)*+"i?)'
    r"|(?P<comment>(?://|\#)[^\n]*+)"
    r"|(?P<pattern>/(?:[^/\\\n]|\\.)++/[a-z]*+)"
    r'|(?P<code>[^"/\#]++)'
    r"|(?P<other>.)"
)
_STANDS_FOR = {"string": '""', "pattern": "//", "comment": ""}
_SIGNS = {
    "<": "tokens by name or number",
    "@": "other grammars",
    "&": "intersections",
    "~": "the sign ~ (write {2} or {2,5} for repetitions)",
    "::": "parameters of rules",
}
_DIRECTIVE = re.compile(r"%\w*+")
_OPTIONS = re.compile(r"(?m)^[ \t]*+[!?]?[\w-]++[ \t]*+\[[^\]\n]*+\][ \t]*+:")
_TIMES = re.compile(r"\{\s*+(\d*+)\s*+,?\s*+(\d*+)\s*+\}")
_OWN_HEAD = "%llguidance {}"  # of what the library has converted
_GBNF = re.compile(r"[\w-]\s*+::=")


def choice_source(choices: Sequence[str]) -> str:
    """The grammar of one of these texts."""
    for choice in choices:
        if len(choice) > MAX_LITERAL_CHARS:
            raise TooLarge(f"a choice has {len(choice)} characters, more than {MAX_LITERAL_CHARS}")
    return "start: " + " | ".join(map(json.dumps, choices))


def grammar_source(where: str, grammar: str) -> str:
    """A caller's grammar in the library's notation. Raises `InvalidRequest`."""
    if _GBNF.search(grammar) is None:
        check_grammar(where, grammar)
        return grammar
    try:
        converted = str(gbnf_to_lark(grammar)).removeprefix(_OWN_HEAD)
    except Exception as error:  # the library's own kinds, and RecursionError
        raise InvalidRequest(f"{where} is no grammar in GBNF", param=where) from error
    check_grammar(where, converted)
    return converted


def check_grammar(where: str, grammar: str) -> None:
    """Raise `InvalidRequest` for notation that is not taken or that would cost too much. Takes
    time linear in the length."""
    code: list[str] = []
    for kind, text in _parts_of(grammar):
        if kind == "string" and len(text) > MAX_LITERAL_CHARS:
            message = f"{where} has a string of {len(text)} characters; at most"
            raise TooLarge(f"{message} {MAX_LITERAL_CHARS} are taken", param=where)
        if kind == "pattern":
            body, _, flags = text[1:].rpartition("/")
            if "x" in flags:
                raise InvalidRequest(f"{where} has a pattern with the flag x", param=where)
            check_pattern(where, body)
        code.append(text if kind == "code" else _STANDS_FOR.get(kind, text))
    _check_code(where, "".join(code))


def _parts_of(grammar: str) -> Iterator[tuple[str, str]]:
    for found in _PARTS.finditer(grammar):
        yield found.lastgroup or "other", found[0]


def _check_code(where: str, code: str) -> None:
    for sign, name in _SIGNS.items():
        if sign in code:
            raise InvalidRequest(f"{where} uses {name}, which is not supported", param=where)
    for directive in _DIRECTIVE.findall(code):
        if directive not in ("%ignore", "%import"):
            message = f"{where} uses {directive[:32]!r}; only %ignore and %import are supported"
            raise InvalidRequest(message, param=where)
    if _OPTIONS.search(code):
        raise InvalidRequest(
            f"{where} gives options to a rule, which is not supported", param=where
        )
    counts = [max(map(_count, found.groups())) for found in _TIMES.finditer(code)]
    product = math.prod(max(count, 1) for count in counts)
    if max(counts, default=0) > MAX_TIMES or product > MAX_ALL_TIMES:
        message = f"{where} repeats too often; at most {MAX_TIMES} times each"
        raise TooLarge(f"{message}, {MAX_ALL_TIMES} for all repetitions multiplied", param=where)


def _count(digits: str) -> int:
    return int(digits or 0) if len(digits) < 7 else MAX_ALL_TIMES
