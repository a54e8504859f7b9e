"""The world of shapes: one caption per scene, a split that training can't cross."""

from __future__ import annotations

import random
from itertools import islice

from checkpoints.training import data, wording
from checkpoints.training.scenes import (
    Figure,
    Scene,
    all_scenes,
    caption,
    evaluation_scenes,
    is_held_out,
    parse_caption,
    sample,
    split,
)


def test_every_caption_is_read_back_as_its_scene() -> None:
    for scene in islice(all_scenes(), 0, None, 7):
        assert parse_caption(caption(scene)) == scene
        assert parse_caption(wording.description(scene).replace("gray", "grey")) == scene


def test_both_orders_of_a_scene_have_one_caption() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = sample(rng)
        assert caption(scene) == caption(scene.flipped())
        assert scene.flipped().canonical() == scene


def test_other_text_is_not_read_as_a_caption() -> None:
    assert parse_caption("a red circle") is None
    assert parse_caption("A large red circle on a white background. And more") is None


def test_the_split_is_stable_and_about_a_tenth_is_held_out() -> None:
    figure = Figure("large", "red", "circle")
    assert [is_held_out(Scene(ground, (figure,))) for ground in ("white", "black", "gray")] == [
        False,
        False,
        False,
    ]
    seen, unseen = sum(map(len, split(False))), sum(map(len, split(True)))
    assert 0.09 < unseen / (seen + unseen) < 0.11


def test_training_streams_never_show_a_held_out_scene() -> None:
    held_out = {caption(scene) for side in split(True) for scene in side}
    for name in ("painter", "captioner"):
        scenes, _ = data.shard_scenes(name, 0, 3000)
        assert not held_out & {caption(scene) for scene in scenes}
    prompts = {text.lower() for _, text in data.prompt_stream(1, 1500)}
    assert not held_out & prompts


def test_evaluation_scenes_are_held_out_and_distinct() -> None:
    scenes = evaluation_scenes(300)
    assert len({caption(scene) for scene in scenes}) == 300
    assert all(is_held_out(scene) for scene in scenes)


def test_a_complete_prompt_names_everything() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = sample(rng)
        text = wording.prompt(rng, scene, complete=True).lower().replace("grey", "gray")
        assert scene.ground in text
        for figure in scene.figures:
            assert figure.kind in text
            assert figure.colour in text
            assert any(word in text for word in wording.SIZE_WORDS[figure.size])
