import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.grounding.boxes import Convention, PictureBox
from predictors.chat.grounding.scaling import caller_boxes
from predictors.chat.request import PictureSize

SHRUNK = PictureSize(140, 112, 20, 1400, 560)
SAME = PictureSize(56, 56, 4, 56, 56)


def said(*boxes: list[float], label: str = "cat") -> str:
    return json.dumps([{"bbox_2d": box, "label": label} for box in boxes])


@pytest.mark.parametrize(
    ("convention", "coordinates", "box", "expected"),
    [
        ("pixels", "original", [14, 28, 70, 112], (140, 140, 700, 560)),
        ("pixels", "normalized_1000", [14, 28, 70, 112], (100, 250, 500, 1000)),
        ("normalized_1000", "original", [100, 250, 500, 1000], (140, 140, 700, 560)),
        ("normalized_1000", "normalized_1000", [100, 250, 500, 1000], (100, 250, 500, 1000)),
        ("pixels", "original", [70, 112, 14, 28], (140, 140, 700, 560)),
        ("pixels", "original", [-20, -1e300, 14, 56], (0, 0, 140, 280)),
        ("pixels", "original", [126, 56, 900, 1e300], (1260, 280, 1400, 560)),
        ("pixels", "original", [7, 7, 7, 7], (70, 35, 70, 35)),
        ("pixels", "original", [140, 112, 140, 112], (1400, 560, 1400, 560)),
    ],
    ids=range(9),
)
def test_a_box_is_scaled_to_the_callers_picture(
    convention: Convention, coordinates: str, box: list[float], expected: tuple[int, ...]
) -> None:
    found = caller_boxes(said(box), (SHRUNK,), convention, coordinates)
    assert found == (PictureBox(0, "cat", expected),)


@pytest.mark.parametrize(
    "box",
    [[141, 0, 150, 9], [-9, 0, -1, 9], [-9, 0, 0, 9], [140, 0, 150, 9], [0, 112, 9, 120],
     [141, 5, 141, 5]],
    ids=range(6),
)  # fmt: skip
def test_a_box_outside_its_picture_is_left_out(box: list[float]) -> None:
    found = caller_boxes(said([1, 1, 2, 2], box, [3, 3, 4, 4]), (SHRUNK,), "pixels", "original")
    assert [each.box for each in found] == [(10, 5, 20, 10), (30, 15, 40, 20)]


def test_a_number_without_an_end_is_left_out() -> None:
    text = '{"bbox": [' + "9" * 400 + ", 1, 2, 3]}"
    assert caller_boxes(text, (SHRUNK,), "pixels", "original") == ()


def test_an_answer_without_a_picture_has_no_boxes() -> None:
    assert caller_boxes(said([1, 2, 3, 4]), (), "pixels", "original") == ()


def test_of_several_pictures_the_named_one_has_the_box() -> None:
    text = (
        f"{said([7, 7, 14, 14])} Picture 2: {said([7, 7, 14, 14])} Picture 3: {said([1, 1, 2, 2])}"
    )
    found = caller_boxes(text, (SAME, SHRUNK), "pixels", "original")
    assert found == (PictureBox(1, "cat", (70, 35, 140, 70)),)


sides = st.integers(28, 4000)


@given(sides, sides, sides, sides, st.data())
def test_scaling_there_and_back_is_off_by_less_than_a_pixel_of_the_smaller_picture(
    width: int, height: int, wide: int, high: int, data: st.DataObject
) -> None:
    size = PictureSize(width, height, 1, wide, high)
    xs = sorted(data.draw(st.lists(st.integers(1, width - 1), min_size=2, max_size=2)))
    ys = sorted(data.draw(st.lists(st.integers(1, height - 1), min_size=2, max_size=2)))
    box = [xs[0], ys[0], xs[1], ys[1]]
    (there,) = caller_boxes(said([*box]), (size,), "pixels", "original")
    back = PictureSize(wide, high, 1, width, height)
    (again,) = caller_boxes(said([*there.box]), (back,), "pixels", "original") or (None,)
    for axis, (read, file) in enumerate(((width, wide), (height, high))):
        assert 0 <= there.box[axis] <= there.box[axis + 2] <= file
        for at in (axis, axis + 2):
            if again is not None:
                assert abs(again.box[at] - box[at]) <= max(1, read / file)
