"""Reads the boxes that an answer names, in the spellings of Qwen's models.

Objects with `bbox_2d`, `bbox`, `box_2d` or `point_2d` are read wherever they stand, in a whole or
in a broken JSON text; so are the tags `<|box_start|>` and `<|object_ref_start|>`. Time is linear in
the text, of which the first `MAX_CHARS` are read. Nothing raises: what can't be read is left out.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_BOXES = 1000
MAX_CHARS = 2**16
"""About a thousand boxes with short labels; this many are read in some ten milliseconds."""
MAX_DEPTH = 64  # of objects inside each other
BOX_KEYS = frozenset(("bbox_2d", "bbox", "box_2d"))
POINT_KEYS = frozenset(("point_2d",))
LABEL_KEYS = frozenset(("label", "text_content"))  # Qwen's key for the text of a document's line

_NUMBER = r"-?+\d++(?:\.\d++)?+(?:[eE][+-]?+\d++)?+"
_SPACE = r"[ \t\r\n]*+"
_PAIR = re.compile(
    rf"{_SPACE},?+{_SPACE}\({_SPACE}({_NUMBER}){_SPACE},{_SPACE}({_NUMBER}){_SPACE}\)"
)
_OUTSIDE = re.compile(r"\{|<\|object_ref_start\|>([^<\n]*+)|<\|box_start\|>")
# A string without an end is taken up to its line's, so that no character is read twice.
_INSIDE = re.compile(rf'"((?:[^"\\\n]++|\\.)*+)"?+|({_NUMBER})|[{{}}\[\]:,]')
_PICTURE = re.compile(r"\b(?:picture|image)[ \t]{0,2}+#?+(\d{1,4}+)\b", re.IGNORECASE)

Corners = tuple[float, float, float, float]


@dataclass(slots=True)
class SpokenBox:
    """A box as the model said it; a point has its corners in one place. `picture` is the number
    that the text gives it, from 1, or None."""

    corners: Corners
    label: str = ""
    picture: int | None = None


@dataclass(slots=True)
class _Object:
    """A JSON object that is being read: the key whose value comes, and what it held so far."""

    key: str = ""
    last: str = ""
    label: str = ""
    brackets: int = 0
    numbers: list[float] = field(default_factory=list)
    boxes: list[SpokenBox] = field(default_factory=list)


def read_boxes(text: str) -> list[SpokenBox]:
    """The boxes of an answer in their order, at most `MAX_BOXES`."""
    text = text[:MAX_CHARS]
    found: list[tuple[SpokenBox, int]] = []
    for box, end in _boxes(text):
        found.append((box, end))
        if len(found) == MAX_BOXES:
            break
    named = [(match.start(), int(match[1])) for match in _PICTURE.finditer(text)]
    places = [place for place, _ in named]
    for box, end in found:
        if before := bisect_left(places, end):
            box.picture = named[before - 1][1]
    return [box for box, _ in found]


def _boxes(text: str) -> Iterator[tuple[SpokenBox, int]]:
    """Each box and where its object or its tag ends."""
    place, label = 0, ""
    while (match := _OUTSIDE.search(text, place)) is not None:
        place = match.end()
        if match[0] == "{":
            boxes, place = _read_object(text, place)
            yield from boxes
        elif match[1] is not None:
            label = _clean(match[1])
        else:
            boxes, place = _read_tag(text, place, label)
            yield from boxes


def _read_tag(text: str, place: int, label: str) -> tuple[list[tuple[SpokenBox, int]], int]:
    """The boxes between the tags: pairs of corners, or one point."""
    points: list[tuple[float, float]] = []
    while len(points) < 2 * MAX_BOXES and (pair := _PAIR.match(text, place)) is not None:
        points.append((float(pair[1]), float(pair[2])))
        place = pair.end()
    if len(points) == 1:
        points *= 2
    corners = zip(points[::2], points[1::2], strict=False)
    return [(SpokenBox((*one, *other), label), place) for one, other in corners], place


def _read_object(text: str, place: int) -> tuple[list[tuple[SpokenBox, int]], int]:
    """The boxes of an object whose brace has just been read, and of those inside it. An answer may
    end before the object does."""
    stack, deeper = [_Object()], 0
    found: list[tuple[SpokenBox, list[int]]] = []
    ends: list[list[int]] = [[len(text)]]  # of each open object, filled in when it closes
    for match in _INSIDE.finditer(text, place):
        place, sign = match.end(), match[0]
        if sign == "{":
            if len(stack) == MAX_DEPTH:
                deeper += 1
                continue
            stack.append(_Object())
            ends.append([len(text)])
        elif sign == "}":
            if deeper:
                deeper -= 1
                continue
            ends.pop()[0] = place
            _name(stack.pop())
            if not stack:
                break
        elif not deeper and (corners := _read_sign(stack[-1], match)) is not None:
            box = SpokenBox(corners)
            stack[-1].boxes.append(box)
            found.append((box, ends[-1]))
            if len(found) == MAX_BOXES:
                break
    else:
        place = len(text)
    for each in stack:
        _name(each)
    return [(box, end[0]) for box, end in found], place


def _read_sign(here: _Object, match: re.Match[str]) -> Corners | None:
    """Take a string, a number or a sign into an object. The corners that it completes."""
    sign = match[0]
    if match[1] is not None:
        if here.key in LABEL_KEYS:
            here.label = here.label or _clean(_unescaped(match[1]))
        elif not here.key:
            here.last = match[1]
    elif match[2] is not None:
        if here.brackets and len(here.numbers) <= 4:
            here.numbers.append(float(match[2]))
    elif sign == ":":
        here.key, here.last = here.last, ""
    elif sign == "[":
        here.brackets += 1
        here.numbers = []
    elif sign == "]":
        numbers, here.numbers = here.numbers, []
        here.brackets = max(0, here.brackets - 1)
        return _corners(here.key, numbers)
    elif sign == "," and not here.brackets:
        here.key = ""
    return None


def _corners(key: str, numbers: list[float]) -> Corners | None:
    if key in BOX_KEYS and len(numbers) == 4:
        return (numbers[0], numbers[1], numbers[2], numbers[3])
    if key in POINT_KEYS and len(numbers) == 2:
        return (numbers[0], numbers[1], numbers[0], numbers[1])
    return None


def _name(done: _Object) -> None:
    for box in done.boxes:
        box.label = done.label


def _unescaped(written: str) -> str:
    if "\\" not in written:
        return written
    try:
        return str(json.loads(f'"{written}"', strict=False))
    except ValueError:
        return written


def _clean(label: str) -> str:
    """The label as text that any encoding takes: an escape may be half a surrogate pair."""
    return label.strip().encode("utf-8", "replace").decode()
