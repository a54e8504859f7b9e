"""Regular expressions before the library reads them: bounds, since it writes some repetitions out,
and the classes of schemas."""

from __future__ import annotations

import re

from predictors.errors import InvalidRequest, TooLarge

MAX_PARTS = 10_000
"""Most parts of a pattern with its repetitions written out. With twice as many a mask takes 15
ms."""
MAX_GROUPS = 200  # inside of one another
_TIMES = re.compile(r"\{\s*+(\d*+)\s*+(,?)\s*+(\d*+)\s*+\}")
_FLAGS = re.compile(r"\(\?([a-zA-Z-]*+)[:)]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ASCII = {
    "d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]",
}  # fmt: skip
_NAMED = re.compile(r"\\[pPxuU]\{[^}]*+\}")


def check_pattern(where: str, pattern: str) -> None:
    """Raise `InvalidRequest` for a pattern that is too large once it is written out. Takes time
    linear in its length; a wrong pattern is left to the library."""
    sizes, last, at = [0], 0, 0  # of open groups, and of the part that a repetition would repeat
    while at < len(pattern):
        sign, step = pattern[at], 1
        times = _TIMES.match(pattern, at) if sign == "{" else None
        if sign == "(":
            _check_group(where, pattern, at, len(sizes))
            sizes.append(0)
            last, step = 0, _skip_opening(pattern, at)
        elif sign == ")":
            last = sizes.pop()
            sizes = sizes or [0]
            sizes[-1] += last
        elif times is not None:
            repeated = last * max(1, _most(where, times))
            sizes[-1] += repeated - last
            last, step = repeated, len(times[0])
        elif sign not in "*+?|":
            last, step = 1, _skip_part(pattern, at)
            sizes[-1] += 1
        if sizes[-1] > MAX_PARTS:
            message = f"{where} holds a pattern of more than {MAX_PARTS} parts with its repetitions"
            raise TooLarge(f"{message} written out; repeat less", param=where)
        at += step


def _check_group(where: str, pattern: str, at: int, depth: int) -> None:
    if depth > MAX_GROUPS:
        message = f"{where} holds a pattern with groups more than {MAX_GROUPS} deep"
        raise TooLarge(message, param=where)
    flags = _FLAGS.match(pattern, at)
    if flags is not None and "x" in flags[1]:
        message = f"{where} holds a pattern with the flag x, which is not supported; leave it out"
        raise InvalidRequest(message, param=where)


def _skip_opening(pattern: str, at: int) -> int:
    flags = _FLAGS.match(pattern, at)
    return len(flags[0]) if flags is not None and flags[0][-1] == ":" else 1


def _most(where: str, times: re.Match[str]) -> int:
    low, comma, high = times.groups()
    if max(len(low), len(high)) > 9:
        raise TooLarge(f"{where} holds a pattern that repeats too often", param=where)
    return max(int(low or 0), int(high or 0) if comma else 0)


def _skip_part(pattern: str, at: int) -> int:
    """The characters of one part: an escape, a class in brackets or a character."""
    if pattern[at] == "\\":
        named = _NAMED.match(pattern, at)
        return len(named[0]) if named is not None else 2
    if pattern[at] != "[":
        return 1
    depth, end = 0, at
    while end < len(pattern):
        sign = pattern[end]
        end += 2 if sign == "\\" else 1
        depth += (sign == "[") - (sign == "]")
        if depth == 0:
            break
    return end - at


def as_in_schemas(pattern: str) -> str:
    """A schema's pattern in the library's notation: `\\d` and `\\w` are ASCII's, as in ECMAScript,
    where the library has those of every script."""
    return _ESCAPE.sub(lambda found: _ASCII.get(found[1], found[0]), pattern)
