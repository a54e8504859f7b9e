"""Finds tool calls in the text of a growing answer, in Qwen's format:

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

The parts that it returns do not depend on how the text is cut into pieces, once neighbours are
joined. Time is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_HEADER = re.compile(
    r'\s{0,16}+\{\s{0,16}+"name"\s{0,16}+:\s{0,16}+"([A-Za-z0-9_-]{1,64})"\s{0,16}+,'
    r'\s{0,16}+"arguments"\s{0,16}+:\s{0,16}+(?=\{)'
)
MAX_HEADER = 256  # characters; no match is longer
_MARK = re.compile(r'["\\{}\[\]]')
_ENDING = "}" + CLOSING


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of call number `index`. The first one has its name, the others parts of the JSON text
    of its arguments; a call that is read at once has both."""

    index: int
    name: str | None
    arguments: str


Part = str | CallPart


class _Within(Enum):
    TEXT = auto()
    BLOCK = auto()
    ARGUMENTS = auto()
    ENDING = auto()


class TagReader:
    """Splits one answer into text and calls of the functions `names`. One thread at a time.

    White space that touches a call belongs to the format and is left out. A block that is no call
    of one of them stays text, unchanged. A grammar has made the answer, so that a call that begins
    rightly goes on rightly: its arguments are passed on while they grow.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._within = _Within.TEXT
        self._spaces: list[str] = []  # not passed on yet: a call may follow
        self._cut = ""  # the end of what came, where it may begin a tag
        self._after_call = False
        self._block: list[str] = []
        self._block_chars = 0
        self._depth = 0
        self._in_string = self._escaped = False
        self.num_calls = 0
        self.is_complete = True
        """False while a call has begun and not ended."""

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text:
            if self._within is _Within.TEXT:
                text = self._text(text, parts)
            elif self._within is _Within.BLOCK:
                text = self._in_block(text, parts)
            elif self._within is _Within.ARGUMENTS:
                text = self._in_arguments(text, parts)
            else:
                text = self._in_ending(text)
        return parts

    def end(self) -> list[Part]:
        """The parts that were held back, once the answer is over."""
        parts: list[Part] = []
        if self._within is _Within.BLOCK:
            self._give_back("".join(self._block), parts)
        elif self._within is _Within.TEXT:
            self._pass_on(self._cut, parts)
        if self._spaces and not self._after_call:
            parts.append("".join(self._spaces))
        self._spaces, self._cut, self._block = [], "", []
        return parts

    # -- text ------------------------------------------------------------------------------------
    def _text(self, text: str, parts: list[Part]) -> str:
        text = self._cut + text
        at = text.find(OPENING)
        if at < 0:
            keep = _may_begin(text, OPENING)
            self._cut = text[len(text) - keep :]
            self._pass_on(text[: len(text) - keep], parts)
            return ""
        self._cut = ""
        self._pass_on(text[:at], parts)
        self._within, self._block, self._block_chars = _Within.BLOCK, [], 0
        return text[at + len(OPENING) :]

    def _pass_on(self, text: str, parts: list[Part]) -> None:
        """All but the white space at its end."""
        bare = text.rstrip()
        if not bare:
            if text:
                self._spaces.append(text)
            return
        shown = bare.lstrip() if self._after_call else "".join((*self._spaces, bare))
        self._after_call = False
        parts.append(shown)
        self._spaces = [text[len(bare) :]] if len(text) > len(bare) else []

    def _give_back(self, block: str, parts: list[Part]) -> None:
        """The tag and what is behind it as text."""
        self._within = _Within.TEXT
        self._pass_on(OPENING + block, parts)

    # -- calls -----------------------------------------------------------------------------------
    def _in_block(self, text: str, parts: list[Part]) -> str:
        """Reads on to the call's name, or to the end of the block."""
        self._block.append(text)
        self._block_chars += len(text)
        if self._block_chars - len(text) < MAX_HEADER:
            block = "".join(self._block)
            found = _HEADER.match(block)
            if found and found[1] in self._names:
                self._begin(parts, found[1])
                self._within, self._depth, self._cut = _Within.ARGUMENTS, 0, ""
                self._in_string = self._escaped = self.is_complete = False
                return block[found.end() :]
        text = self._cut + text  # the tag may have begun before
        at = text.find(CLOSING)
        if at < 0:
            self._cut = text[1 - len(CLOSING) :]
            return ""
        self._cut, rest = "", text[at + len(CLOSING) :]
        whole = "".join(self._block)
        block = whole[: len(whole) - len(rest) - len(CLOSING)]
        call = self._read_whole(block)
        if call is None:
            self._give_back(block + CLOSING, parts)
        else:
            self._begin(parts, *call)
            self._finish()
        return rest

    def _read_whole(self, block: str) -> tuple[str, str] | None:
        """Name and arguments of a complete call; None where it is none."""
        try:
            found = json.loads(block, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
            return None
        name, arguments = found["name"], found["arguments"]
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return name, json.dumps(arguments, ensure_ascii=False)

    def _begin(self, parts: list[Part], name: str, arguments: str = "") -> None:
        parts.append(CallPart(self.num_calls, name, arguments))
        self.num_calls += 1
        self._spaces = []

    def _finish(self) -> None:
        self._within, self._after_call, self.is_complete = _Within.TEXT, True, True
        self._cut = ""

    def _in_arguments(self, text: str, parts: list[Part]) -> str:
        end = self._end_of_object(text)
        if end is None:
            parts.append(CallPart(self.num_calls - 1, None, text))
            return ""
        parts.append(CallPart(self.num_calls - 1, None, text[:end]))
        self._within, self._cut, self.is_complete = _Within.ENDING, "", True
        return text[end:]

    def _end_of_object(self, text: str) -> int | None:
        """Where the object ends that began earlier or begins here; None where it goes on."""
        at, self._escaped = int(self._escaped), False
        while found := _MARK.search(text, at):
            mark, at = found[0], found.end()
            if mark == "\\":
                self._escaped = at == len(text)
                at += 1
            elif mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    return at
        return None

    def _in_ending(self, text: str) -> str:
        """Reads the brace and the tag behind the arguments; anything else is text again."""
        bare = (self._cut + text).lstrip()
        if bare.startswith("}"):
            bare = "}" + bare[1:].lstrip()
        if _ENDING.startswith(bare):
            self._cut = bare
            return ""
        self._finish()
        return bare.removeprefix(_ENDING)


def refuse_constant(constant: str) -> None:
    """Python's reader takes NaN and Infinity, which are no JSON."""
    raise ValueError(constant)


def _may_begin(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`, and is not all of it."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0
