"""Every colour and kind word is labelled with the figure that it names, in any order."""

from __future__ import annotations

import random

import torch

from checkpoints.training import train_words, wording
from checkpoints.training.export import load_tokenizers
from checkpoints.training.scenes import KINDS, PALETTE, RELATIONS, SIZES, Figure, Scene, sample

SCENE = Scene("white", (Figure("small", "red", "star"), Figure("small", "blue", "cross")), "left")


def _label(figure: Figure, place: str) -> list[int]:
    return [
        list(PALETTE).index(figure.colour),
        KINDS.index(figure.kind),
        SIZES.index(figure.size),
        list(RELATIONS).index(place),
    ]


def test_either_order_gives_each_figure_its_position() -> None:
    _, tokenizer = load_tokenizers()
    star, cross = (
        _label(figure, place)
        for figure, place in zip(SCENE.figures, ("left", "right"), strict=True)
    )
    for text, expected in (
        ("a small red star to the left of a small blue cross", [star, cross]),
        ("Small Blue Cross right of small red star", [cross, star]),
    ):
        _, labels = train_words.word_labels(tokenizer, text, SCENE)
        marked = labels[labels[:, 0] != train_words.NO_LABEL]
        assert torch.unique_consecutive(marked, dim=0).tolist() == expected


def test_figures_of_equal_words_get_no_label() -> None:
    _, tokenizer = load_tokenizers()
    star = SCENE.figures[0]
    scene = Scene("white", (star, star), "above")
    _, labels = train_words.word_labels(tokenizer, str(star) + " above " + str(star), scene)
    assert (labels == train_words.NO_LABEL).all()


def test_nearly_every_training_prompt_is_labelled() -> None:
    _, tokenizer = load_tokenizers()
    rng = random.Random(0)
    labelled = 0
    for _ in range(100):
        scene = sample(rng)
        _, labels = train_words.word_labels(tokenizer, wording.prompt(rng, scene), scene)
        labelled += bool((labels != train_words.NO_LABEL).any())
    assert labelled >= 95
