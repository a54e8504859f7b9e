"""The rule-based checker reads drawn pictures correctly and refuses unclear ones."""

from __future__ import annotations

from PIL import Image, ImageFilter

from checkpoints.training import checker, drawing
from checkpoints.training.scenes import Figure, Scene, evaluation_scenes

RED_CIRCLE = Figure("large", "red", "circle")
BLUE_STAR = Figure("small", "blue", "star")


def test_drawn_pictures_are_read_correctly() -> None:
    scenes = evaluation_scenes(100, seed=11)
    images = drawing.draw(scenes, seed=11)
    right = sum(checker.read(i) == s for i, s in zip(images, scenes, strict=True))
    assert right >= 99


def test_each_relation_is_read_as_drawn() -> None:
    for relation in ("left", "right", "above", "below"):
        scene = Scene("white", (RED_CIRCLE, BLUE_STAR), relation)
        assert checker.read(drawing.draw([scene])[0]) == scene


def test_a_slightly_soft_picture_is_still_read() -> None:
    scene = Scene("gray", (RED_CIRCLE,))
    soft = drawing.draw([scene])[0].filter(ImageFilter.GaussianBlur(0.7))
    assert checker.read(soft) == scene


def test_an_empty_picture_shows_no_scene() -> None:
    assert checker.read(Image.new("RGB", (128, 128), "white")) is None


def test_a_background_of_another_colour_shows_no_scene() -> None:
    assert checker.read(Image.new("RGB", (128, 128), (200, 40, 90))) is None


def test_a_blob_is_not_a_figure() -> None:
    image = Image.new("RGB", (128, 128), "white")
    image.paste((220, 40, 40), (10, 60, 118, 70))
    assert checker.read(image) is None
