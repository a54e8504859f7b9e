import json
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.grounding import spoken
from predictors.chat.grounding.spoken import MAX_BOXES, MAX_CHARS, MAX_DEPTH, read_boxes

BOX = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'


def read(text: str) -> list[tuple[tuple[float, ...], str]]:
    return [(box.corners, box.label) for box in read_boxes(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{BOX}]", [((1, 2, 3, 4), "cat")]),
        (f"```json\n[\n\t{BOX},\n\t{BOX}\n]\n```", [((1, 2, 3, 4), "cat")] * 2),
        (f"Here it is: {BOX}. Anything else?", [((1, 2, 3, 4), "cat")]),
        (f'The 12" one is "here: {BOX}', [((1, 2, 3, 4), "cat")]),
        ('{"label": "cat", "bbox": [1.5, -2, 3e1, 4]}', [((1.5, -2, 30, 4), "cat")]),
        ('{"box_2d":[1,2,3,4]}', [((1, 2, 3, 4), "")]),
        ('{"point_2d": [7, 8], "label": "nose"}', [((7, 8, 7, 8), "nose")]),
        ('{"bbox_2d": [1, 2, 3, 4], "text_content": "No. 5"}', [((1, 2, 3, 4), "No. 5")]),
        (
            '{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "cats"}',
            [((1, 2, 3, 4), "cats"), ((5, 6, 7, 8), "cats")],
        ),
        (
            '{"found": [{"n": true, "label": "a", "bbox": [1, 2, 3, 4], "x": {"label": "b"}}]}',
            [((1, 2, 3, 4), "a")],
        ),
        (r'{"bbox": [1, 2, 3, 4], "label": "a \"b\" é \ud800"}', [((1, 2, 3, 4), 'a "b" é ?')]),
        ('{"bbox": [1, 2, 3, 4], "label": "cut of', [((1, 2, 3, 4), "cut of")]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6', [((1, 2, 3, 4), "a")]),
        (
            "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
            [((1, 2, 3, 4), "the cat")],
        ),
        (
            "<|object_ref_start|>cats<|object_ref_end|><|box_start|>(1, 2),(3, 4)<|box_end|>"
            "<|box_start|>(5,6),(7,8)<|box_end|> and <|box_start|>(9,9)<|box_end|>",
            [((1, 2, 3, 4), "cats"), ((5, 6, 7, 8), "cats"), ((9, 9, 9, 9), "cats")],
        ),
        (
            "<|box_start|>(1,2),(3,4),(5,6),(7,8)<|box_end|>",
            [((1, 2, 3, 4), ""), ((5, 6, 7, 8), "")],
        ),
    ],
    ids=range(16),
)  # fmt: skip
def test_boxes_are_read_in_qwens_spellings(
    text: str, expected: list[tuple[tuple[float, ...], str]]
) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "no box", "[1, 2, 3, 4]", '{"bbox": [1, 2, 3]}', '{"bbox": [1, 2, 3, 4, 5]}',
     '{"bbox": "1, 2, 3, 4"}', '{"bbox": {"x": 1}}', '{"label": [1, 2, 3, 4]}', "<|box_start|>",
     "<|box_start|>()<|box_end|>", "(1,2),(3,4)", "}{][", '{"point_2d": [1, 2, 3, 4]}',
     '{"a": "bbox", "b": [1, 2, 3, 4]}', '{"bbox": null, "b": [1, 2, 3, 4]}'],
    ids=range(15),
)  # fmt: skip
def test_other_texts_have_no_boxes(text: str) -> None:
    assert read(text) == []


def test_a_picture_is_named_by_the_last_name_before_the_end_of_the_object() -> None:
    text = (
        f'{BOX} Picture 2: [{BOX}, {{"bbox": [5, 6, 7, 8], "image": "Image 3"}}] '
        "image #1 <|box_start|>(1,2),(3,4)<|box_end|> Picture 9"
    )
    assert [box.picture for box in read_boxes(text)] == [None, 2, 3, 1]


def test_boxes_are_bounded_in_number_and_depth() -> None:
    assert len(read_boxes(BOX * (2 * MAX_BOXES))) == MAX_BOXES
    pairs = "(1,2),(3,4)" * (2 * MAX_BOXES)
    assert len(read_boxes(f"<|box_start|>{pairs}")) == MAX_BOXES
    deep = '{"a":' * (MAX_DEPTH + 5) + '{"bbox": [9, 9, 9, 9]}' + "}" * (MAX_DEPTH + 5)
    assert read(f"{deep} {BOX}") == [((1, 2, 3, 4), "cat")]


texts = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", '"', "\\", ",", ":", "\n", " ", "1", "-", ".", "e", "9" * 400, "(",
         ")", "bbox_2d", '"bbox_2d"', '"label": ', "<|box_start|>", "<|object_ref_start|>",
         "Picture 2", BOX, "é", "\ud800"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(texts)
def test_reading_never_raises(text: str) -> None:
    for box in read_boxes(text):
        box.label.encode()


@given(st.lists(st.tuples(st.lists(st.integers(-2000, 2000), min_size=4, max_size=4), st.text())))
def test_what_json_writes_is_read(entries: list[tuple[list[int], str]]) -> None:
    written = json.dumps([{"bbox_2d": box, "label": label} for box, label in entries])
    if len(written) <= MAX_CHARS:
        labels = [label.strip().encode("utf-8", "replace").decode() for _, label in entries]
        boxes = [tuple(box) for box, _ in entries]
        assert read(written) == list(zip(boxes, labels, strict=True))


@pytest.mark.parametrize(
    "piece",
    ["{", '{"', '"\\', '{"a": "', "<|box_start|>(1,", "<|object_ref_start|>", "( ", "{1e", "{[[",
     "picture ", "{-", '{"bbox": [1,', "(1,2),", "<|box_start|>(   ", '{"a"\n'],
    ids=range(15),
)  # fmt: skip
def test_work_grows_with_the_text_and_not_faster(piece: str) -> None:
    def calls(size: int) -> int:
        count = 0

        def seen(_: object, event: str, __: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(seen)
        try:
            read_boxes(piece * (size // len(piece)))
        finally:
            sys.setprofile(None)
        return count

    assert calls(8_000) <= 2.2 * calls(4_000) + 50


def _repeats(parsed: object) -> Iterator[object]:
    """The kinds of all repetitions without a bound."""
    if isinstance(parsed, re._parser.SubPattern | list | tuple):  # type: ignore[attr-defined]
        for each in parsed:
            is_repeat = isinstance(each, tuple) and len(each) == 2 and "REPEAT" in str(each[0])
            if is_repeat and each[1][1] is re._constants.MAXREPEAT:  # type: ignore[attr-defined]
                yield each[0]
            yield from _repeats(each)


@pytest.mark.parametrize("name", ["_PAIR", "_INSIDE", "_PICTURE", "_OUTSIDE"])
def test_patterns_give_nothing_back(name: str) -> None:
    """Every repetition is possessive: a match that fails has read each character once."""
    pattern = getattr(spoken, name)
    found = list(_repeats(re._parser.parse(pattern.pattern)))  # type: ignore[attr-defined]
    assert set(map(str, found)) <= {"POSSESSIVE_REPEAT"}
    assert found or name == "_PICTURE"
