"""Paraphrased prompts for the image model, questions and answers for the captioner.

Every function takes a random generator, so that a training stream can be repeated. Callers pass
only scenes that may be trained on.
"""

from __future__ import annotations

import random

from checkpoints.training.scenes import RELATIONS, Figure, Scene, caption

SIZE_WORDS = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
}
OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "draw ", "paint ",
            "please draw ", "there is ", "show me ", "a simple picture with ")  # fmt: skip
ENDINGS = (" on a {0} background", " on a {0} background", " on {0}", ", {0} background",
           " in front of a {0} background", " against a {0} background",
           ". The background is {0}", " on a plain {0} ground")  # fmt: skip

DESCRIBE = (
    "Describe this picture.", "Describe this image.", "Describe the picture.",
    "Describe the image.", "What is in this image?", "What is in this picture?",
    "What do you see?", "What do you see in this picture?", "What is shown here?",
    "What is shown in the image?", "Describe the image in one sentence.",
    "Describe this picture in one sentence.", "Caption this image.", "Write a caption.",
    "What's in this image?", "What is this?", "Please describe the picture.",
    "Describe what you see.", "Tell me what is in the picture.", "Describe",
    "Describe this image in detail.", "Can you describe this image?",
)  # fmt: skip
COUNT = (
    "How many shapes are there?", "How many shapes are in the picture?",
    "How many shapes do you see?", "Count the shapes.", "How many shapes?",
    "How many objects are there?", "how many shapes are in this image?",
)  # fmt: skip
GREETINGS = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Hello there!", "hello",
    "hi", "Good evening.", "Hello, how are you?",
)  # fmt: skip
ABOUT = (
    "Who are you?", "What can you do?", "What are you?", "Help", "help me", "How do you work?",
    "What is your name?", "Are you a robot?",
)  # fmt: skip
GREETING = "Hello! I can describe pictures of simple shapes."
LIMITS = "I can only describe pictures of simple shapes."
WORDS = (  # noqa: SIM905 (a hundred quoted words would be unreadable)
    "what is the capital of France time weather today tell me a story about dogs cats why sky "
    "write poem code Python explain how to cook rice who was first president world history "
    "music translate this sentence into German say something nice one two three plus minus "
    "number list I you we they can will should could would do does did not and or but if then "
    "when where please thanks yes no maybe day night sun moon water fire city house car train "
    "book game love "
).split()
NUMBER_WORDS = {1: "one", 2: "two"}


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _grey(rng: random.Random, text: str) -> str:
    return text.replace("gray", "grey") if rng.random() < 0.3 else text


def _figure_words(rng: random.Random, figure: Figure, keep_size: bool) -> str:
    if not keep_size:
        return _article(f"{figure.colour} {figure.kind}")
    weights = (6, 2, 1)
    size = rng.choices(SIZE_WORDS[figure.size], weights)[0]
    return _article(f"{size} {figure.colour} {figure.kind}")


def _recase(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.6:
        return text
    if draw < 0.88:
        return text[0].upper() + text[1:] + rng.choice(("", "."))
    if draw < 0.93:
        return text.upper()
    if draw < 0.96:
        return text.title()
    return text + rng.choice((".", "!", ", flat colours", ", simple shapes"))


def prompt(rng: random.Random, scene: Scene, complete: bool = False) -> str:
    """One of many ways to ask for a scene.

    Now and then one that leaves size or ground open, unless it must be complete.
    """
    draw = rng.random()
    if draw < 0.25:
        return caption(scene)
    ordered = scene if rng.random() < 0.5 else scene.flipped()
    if draw < 0.45:
        return _grey(rng, _recase(rng, _plain_caption(ordered)))
    keep_size = complete or rng.random() >= 0.06
    words = [_figure_words(rng, figure, keep_size) for figure in ordered.figures]
    if ordered.relation is not None:
        words.insert(1, rng.choice(RELATION_WORDS[ordered.relation]))
    body = " ".join(words)
    ending = rng.choice(ENDINGS).format(ordered.ground)
    if rng.random() < 0.08 and not complete:
        ending = ""
    if rng.random() < 0.1 and ending:
        text = f"a {ordered.ground} background with {body}"
    else:
        text = rng.choice(OPENINGS) + body + ending
    if rng.random() < 0.06:
        text = text.replace("a large", "large").replace("a small", "small").replace(" a ", " ")
    return _grey(rng, _recase(rng, text))


def _plain_caption(scene: Scene) -> str:
    """The caption in the order of the scene's figures."""
    end = f"on a {scene.ground} background"
    if scene.relation is None:
        return f"a {scene.figures[0]} {end}"
    return f"a {scene.figures[0]} {RELATIONS[scene.relation]} a {scene.figures[1]} {end}"


def description(scene: Scene) -> str:
    """The captioner's sentence for a scene."""
    text = caption(scene)
    return text[0].upper() + text[1:] + "."


def _colour_question(rng: random.Random, scene: Scene) -> tuple[str, str]:
    figure = rng.choice(scene.figures)
    kinds = [other.kind for other in scene.figures]
    if kinds.count(figure.kind) > 1:
        sizes = [other.size for other in scene.figures]
        if sizes.count(figure.size) > 1:
            return ground_question(rng, scene)
        name = f"{figure.size} {figure.kind}"
    else:
        name = figure.kind if rng.random() < 0.85 else f"{figure.size} {figure.kind}"
    colour = rng.choice(("colour", "color"))
    form = rng.choice(("What {0} is the {1}?", "What {0} is the {1}?", "which {0} is the {1}?",
                       "What is the {0} of the {1}?"))  # fmt: skip
    return form.format(colour, name), figure.colour


def ground_question(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Ask for the colour of the ground."""
    colour = rng.choice(("colour", "color"))
    form = rng.choice(("What {0} is the background?", "What is the {0} of the background?"))
    return form.format(colour), scene.ground


def question(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A question about a picture, and its answer."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(DESCRIBE), description(scene)
    if draw < 0.64:
        return rng.choice(COUNT), NUMBER_WORDS[len(scene.figures)]
    if draw < 0.92:
        return _colour_question(rng, scene)
    return ground_question(rng, scene)


def chat(rng: random.Random) -> tuple[str, str]:
    """A turn without a picture, and the captioner's answer."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(GREETINGS), GREETING
    if draw < 0.5:
        return rng.choice(ABOUT), LIMITS
    if draw < 0.6:
        return rng.choice(DESCRIBE + COUNT), LIMITS
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))
    return text + rng.choice(("", ".", "?", "!")), LIMITS
