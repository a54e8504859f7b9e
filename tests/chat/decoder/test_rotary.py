"""Rotary positions of prompts: texts, pictures and films on the axes of time, height and width."""

from __future__ import annotations

from predictors.chat.decoder.rotary import VisionSpan, mrope_positions


def test_the_example_of_qwens_documentation() -> None:
    """Three steps of 2 x 2 tokens, a frame per second, 25 positions per second."""
    film = VisionSpan(0, 2, 2, steps=3, interval=25 * 2 / 1)
    positions, following = mrope_positions(12 + 5, [film])
    assert positions.tolist() == [
        [0, 0, 0, 0, 50, 50, 50, 50, 100, 100, 100, 100, 101, 102, 103, 104, 105],
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 101, 102, 103, 104, 105],
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 101, 102, 103, 104, 105],
    ]
    assert following == 106


def test_fractions_of_an_interval_add_up() -> None:
    def times(interval: float) -> list[int]:
        return VisionSpan(0, 1, 1, steps=5, interval=interval).times().tolist()

    assert times(1.5) == [0, 1, 3, 4, 6]
    assert times(2 * 2 / 3) == [0, 1, 2, 4, 5]  # three frames per second
    assert times(2 * 2 / 24) == [0, 0, 0, 0, 0]  # two thirds of a second are no position yet


def test_text_goes_on_behind_the_longest_of_time_height_and_width() -> None:
    def text_after(span: VisionSpan) -> int:
        length = span.start + span.steps * span.rows * span.columns
        positions, following = mrope_positions(length + 1, [span])
        assert following == positions.max() + 1
        return int(positions[0, -1])

    assert text_after(VisionSpan(2, 1, 7)) == 2 + 7
    assert text_after(VisionSpan(2, 3, 7, steps=4, interval=2.0)) == 2 + 7  # 0, 2, 4, 6
    assert text_after(VisionSpan(2, 3, 7, steps=5, interval=2.0)) == 2 + 9


def test_a_text_without_pictures_counts_alike_on_all_axes() -> None:
    positions, following = mrope_positions(4, [])
    assert positions.tolist() == [[0, 1, 2, 3]] * 3
    assert following == 4
