"""Films of Qwen2.5-VL: prompts, patches and, with the positions of the model's training, greedy
tokens are transformers'."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import transformers

from tests.chat.reference import (
    Reference,
    assert_equal_positions,
    assert_equal_prompts_and_patches,
)
from tests.chat.room import Room
from tests.chat.trained_positions import VIDEO
from tests.models.film_conversations import film_conversations

LIBRARY = tuple(map(int, transformers.__version__.split(".")[:2]))


def test_prompts_and_patches_of_ten_films_are_transformers(
    room: Room, reference: Reference
) -> None:
    assert_equal_prompts_and_patches(room, reference, film_conversations())


def test_positions_of_ten_films_are_those_of_the_models_training(
    room: Room, reference: Reference
) -> None:
    assert_equal_positions(room, reference, film_conversations())


@pytest.mark.skipif(LIBRARY < (5, 24), reason="transformers drops fractions of seconds")
def test_within_a_film_positions_are_transformers_own(room: Room, reference: Reference) -> None:
    own = reference.model.model.get_rope_index.of_library
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    for request in film_conversations():
        given = reference.inputs(request)
        theirs, _ = own(given["input_ids"], **{name: given.get(name) for name in names})
        ours = room.inputs.prepare(request).positions
        kinds = given["mm_token_type_ids"][0].tolist()
        for kind, run in groupby(range(len(kinds)), kinds.__getitem__):
            if kind == VIDEO:
                first, *_, last = run
                film = slice(first, last + 1)
                begin = theirs[:, 0, first] - ours[:, first]
                assert torch.equal(ours[:, film] + begin[:, None], theirs[:, 0, film])


def test_answers_to_ten_films_are_those_of_generate(room: Room, reference: Reference) -> None:
    requests = film_conversations()
    assert room.answers(requests) == [reference.answer(request) for request in requests]
