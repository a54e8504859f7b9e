"""Films of Qwen2.5-VL: prompts, patches, positions and greedy tokens are transformers'."""

from __future__ import annotations

from tests.chat.reference import (
    Reference,
    assert_equal_positions,
    assert_equal_prompts_and_patches,
    whole_seconds,
)
from tests.chat.room import Room
from tests.models.film_conversations import film_conversations


def test_prompts_and_patches_of_ten_films_are_transformers(
    room: Room, reference: Reference
) -> None:
    assert_equal_prompts_and_patches(room, reference, film_conversations())


@whole_seconds
def test_positions_of_ten_films_are_transformers(room: Room, reference: Reference) -> None:
    assert_equal_positions(room, reference, film_conversations())


def test_answers_to_ten_films_are_those_of_generate(room: Room, reference: Reference) -> None:
    requests = film_conversations()
    assert room.answers(requests) == [reference.answer(request) for request in requests]
