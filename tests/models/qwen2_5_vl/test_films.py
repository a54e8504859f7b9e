"""Films of Qwen2.5-VL: prompts, patches, positions and greedy tokens are transformers'."""

from __future__ import annotations

import pytest
import transformers

from tests.chat.reference import (
    Reference,
    assert_equal_positions,
    assert_equal_prompts_and_patches,
)
from tests.chat.room import Room
from tests.models.film_conversations import film_conversations


def test_prompts_and_patches_of_ten_films_are_transformers(
    room: Room, reference: Reference
) -> None:
    assert_equal_prompts_and_patches(room, reference, film_conversations())


# transformers 5.17 spaces steps by whole seconds, and so does this engine; 5.24 keeps the rest, so
# films that are not read at 2, 1, 2/3 ... frames per second have other positions there
KEEPS_FRACTIONS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)


@pytest.mark.xfail(KEEPS_FRACTIONS, reason="transformers keeps fractions of seconds", strict=True)
def test_positions_of_ten_films_are_transformers(room: Room, reference: Reference) -> None:
    assert_equal_positions(room, reference, film_conversations())


def test_answers_to_ten_films_are_those_of_generate(room: Room, reference: Reference) -> None:
    requests = film_conversations()
    assert room.answers(requests) == [reference.answer(request) for request in requests]
