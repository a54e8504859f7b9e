"""The mix of requests: kinds with weights, each drawn from a random source that its caller seeds.

A request of the pool (`pooled`) is the same whenever it is drawn, so that its answer can be
compared with the one that it had alone. All others have a text, and half of the pictures a file,
that was never sent before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from tests.load.asks import Ask, chat, images, v2_binary, v2_grpc, v2_json
from tests.load.pictures import COLORS, PHOTO_PIXELS, fresh, picked

VARIANTS = 4
"""Requests of the pool per kind."""
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("large", "small")
WORDS = ("what", "which", "colour", "shape", "left", "right", "picture", "is", "the", "a", "in")
FLUX_SIZES = ((64, 64), (64, 64), (96, 64), (64, 128), (128, 128))
FLUX_STEPS = (1, 1, 2, 2, 4)
LONG_STEPS = 20

Draw = Callable[[random.Random, str], Ask]


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    weight: float
    draw: Draw
    """Makes a request; the text in it makes it unlike all others, unless that is empty."""


# -- FLUX ----------------------------------------------------------------------------------------
def _scene(rng: random.Random, serial: str) -> str:
    text = f"a {rng.choice(SIZES)} {rng.choice(COLORS)} {rng.choice(SHAPES)}"
    return f"{text} {serial}" if serial else text


def _drawing(rng: random.Random, rows: int) -> tuple[dict[str, Any], float]:
    """Parameters of pictures, and their work."""
    width, height = rng.choice(FLUX_SIZES)
    steps = rng.choice(FLUX_STEPS) if rng.random() < 0.97 else LONG_STEPS
    parameters = {"width": width, "height": height, "num_inference_steps": steps,
                  "seed": rng.randrange(2**31)}  # fmt: skip
    if rng.random() < 0.25:
        parameters["tier"] = "turbo"
    if rng.random() < 0.3:
        parameters["output_format"] = rng.choice(("jpeg", "webp"))
    return parameters, width * height * steps * rows / 1e6


def flux_json(rng: random.Random, serial: str) -> Ask:
    parameters, work = _drawing(rng, 1)
    return v2_json("flux rest", "flux", {"prompt": [_scene(rng, serial)]}, work, **parameters)


def flux_rows(rng: random.Random, serial: str) -> Ask:
    rows = rng.randint(2, 4)
    parameters, work = _drawing(rng, rows)
    prompts = [_scene(rng, serial) for _ in range(rows)]
    return v2_json("flux rest rows", "flux", {"prompt": prompts}, work, **parameters)


def flux_binary(rng: random.Random, serial: str) -> Ask:
    parameters, work = _drawing(rng, 1)
    inputs = {"prompt": [_scene(rng, serial).encode()]}
    return v2_binary("flux rest binary", "flux", inputs, work, **parameters)


def flux_guided(rng: random.Random, serial: str) -> Ask:
    parameters, work = _drawing(rng, 2)
    inputs = {"prompt": [_scene(rng, serial)], "negative_prompt": [_scene(rng, "")]}
    return v2_json("flux rest guided", "flux", inputs, work, **parameters)


def flux_grpc(rng: random.Random, serial: str) -> Ask:
    rows = rng.choice((1, 1, 1, 2))
    parameters, work = _drawing(rng, rows)
    inputs = {"prompt": [_scene(rng, serial).encode() for _ in range(rows)]}
    return v2_grpc("flux grpc", "flux", inputs, work, **parameters)


def flux_openai(rng: random.Random, serial: str) -> Ask:
    count = rng.choice((1, 1, 1, 2, 4))
    parameters, work = _drawing(rng, count)
    body = {"prompt": _scene(rng, serial), "n": count, "response_format": "b64_json", **parameters}
    return images("flux openai", body, work)


# -- chat ----------------------------------------------------------------------------------------
_MARK = "@picture@"


def _question(rng: random.Random, serial: str, longest: int = 12) -> str:
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, longest)))
    return f"{words} {serial}?" if serial else f"{words}?"


def _asked(
    rng: random.Random,
    serial: str,
    kind: str,
    *,
    with_picture: bool = False,
    is_photo: bool = False,
    is_stream: bool = False,
    choices: int = 1,
    tokens: Sequence[int] = (4, 8, 16, 32),
    longest: int = 12,
) -> Ask:
    """A chat completion; a picture's base64 is a part of its own."""
    content: Any = _question(rng, serial, longest)
    most, words = rng.choice(tokens), len(content) / 4
    encoded, size = b"", 0.0
    if with_picture:
        _, encoded = picked(rng, serial, is_photo=is_photo)
        url: dict[str, Any] = {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{_MARK}"},
        }
        if is_photo:
            url["max_pixels"] = PHOTO_PIXELS  # a large file, read at the size of the others
        content, size = [url, {"type": "text", "text": content}], 100.0
    body: dict[str, Any] = {
        "model": "qwen-vl", "messages": [{"role": "user", "content": content}],
        "max_tokens": most, "ignore_eos": rng.random() < 0.5, "seed": rng.randrange(2**31),
        "temperature": rng.choice((0, 0.7)),
    }  # fmt: skip
    if choices > 1:
        body["n"] = choices
    if is_stream:
        body["stream"] = True
    work = choices * (words + size + most) / 100
    before, _, after = orjson.dumps(body).partition(_MARK.encode())
    parts = (before, encoded, after) if with_picture else (before,)
    return chat(kind, parts, work, is_stream=is_stream)


def chat_text(rng: random.Random, serial: str) -> Ask:
    return _asked(rng, serial, "chat text")


def chat_long(rng: random.Random, serial: str) -> Ask:
    return _asked(rng, serial, "chat long prompt", longest=200)


def chat_text_stream(rng: random.Random, serial: str) -> Ask:
    tokens = (8, 16, 64, 96)
    return _asked(rng, serial, "chat stream", is_stream=True, tokens=tokens)


def chat_picture(rng: random.Random, serial: str) -> Ask:
    return _asked(rng, serial, "chat picture", with_picture=True)


def chat_picture_stream(rng: random.Random, serial: str) -> Ask:
    return _asked(rng, serial, "chat picture stream", with_picture=True, is_stream=True)


def chat_photo(rng: random.Random, serial: str) -> Ask:
    is_stream = rng.random() < 0.4
    name = "chat photo stream" if is_stream else "chat photo"
    return _asked(rng, serial, name, with_picture=True, is_photo=True, is_stream=is_stream)


def chat_choices(rng: random.Random, serial: str) -> Ask:
    n, is_stream = rng.randint(2, 4), rng.random() < 0.4
    name = "chat choices stream" if is_stream else "chat choices"
    return _asked(rng, serial, name, is_stream=is_stream, choices=n)


def _told(rng: random.Random) -> tuple[dict[str, Any], float]:
    most = rng.choice((4, 8, 16, 32))
    return {"max_tokens": most, "seed": rng.randrange(2**31), "temperature": 0.0}, most / 100 + 1.1


def chat_v2_json(rng: random.Random, serial: str) -> Ask:
    parameters, work = _told(rng)
    question, (_, encoded) = _question(rng, serial), picked(rng, serial)
    inputs = {"prompt": [question], "image": [encoded.decode()]}
    return v2_json("chat rest", "qwen-vl", inputs, work, **parameters)


def chat_v2_binary(rng: random.Random, serial: str) -> Ask:
    parameters, work = _told(rng)
    question, (raw, _) = _question(rng, serial).encode(), picked(rng, serial)
    inputs = {"prompt": [question], "image": [raw]}
    return v2_binary("chat rest binary", "qwen-vl", inputs, work, **parameters)


def chat_grpc(rng: random.Random, serial: str) -> Ask:
    parameters, work = _told(rng)
    question, (raw, _) = _question(rng, serial).encode(), picked(rng, serial)
    inputs = {"prompt": [question], "image": [raw]}
    return v2_grpc("chat grpc", "qwen-vl", inputs, work, **parameters)


# -- the cheapest of both rooms, for counts --------------------------------------------------------
def cheap_chat(rng: random.Random, serial: str) -> Ask:
    name, is_stream = "cheap chat", rng.random() < 0.3
    return _asked(rng, serial, name, is_stream=is_stream, tokens=(1, 2))


def cheap_picture(rng: random.Random, serial: str) -> Ask:
    parameters = {"width": 64, "height": 64, "num_inference_steps": 1,
                  "seed": rng.randrange(2**31)}  # fmt: skip
    prompt = _scene(rng, serial)
    return v2_json("cheap picture", "flux", {"prompt": [prompt]}, 0.004, **parameters)


def cheap_fresh(rng: random.Random, serial: str) -> Ask:
    parameters = {"max_tokens": 1, "seed": 1, "temperature": 0.0}
    raw, _ = fresh(rng, serial)
    inputs = {"prompt": [b"what is this?"], "image": [raw]}
    return v2_binary("fresh picture", "qwen-vl", inputs, 1.1, **parameters)


def cheap_grpc(rng: random.Random, serial: str) -> Ask:
    parameters = {"max_tokens": 1, "seed": rng.randrange(2**31), "temperature": 0.0}
    inputs = {"prompt": [_question(rng, serial).encode()]}
    return v2_grpc("cheap grpc", "qwen-vl", inputs, 0.1, **parameters)


# -- callers that want more than others, and the others -------------------------------------------
def _fixed(rng: random.Random, serial: str, rows: int, side: int, steps: int) -> Ask:
    parameters = {"width": side, "height": side, "num_inference_steps": steps,
                  "seed": rng.randrange(2**31)}  # fmt: skip
    prompts = [_scene(rng, serial) for _ in range(rows)]
    work = side * side * steps * rows / 1e6
    return v2_json(f"{rows} x {steps} steps", "flux", {"prompt": prompts}, work, **parameters)


def _tokens(rng: random.Random, serial: str, choices: int, most: int) -> Ask:
    body: dict[str, Any] = {
        "model": "qwen-vl", "messages": [{"role": "user", "content": _question(rng, serial)}],
        "max_tokens": most, "ignore_eos": True, "seed": rng.randrange(2**31), "temperature": 0.7,
        "n": choices, "stream": choices > 1,
    }  # fmt: skip
    work = choices * most / 100
    return chat(f"n={choices}, {most} tokens", (orjson.dumps(body),), work, is_stream=choices > 1)


FLUX = (
    Kind("flux rest", 25, flux_json),
    Kind("flux rest rows", 8, flux_rows),
    Kind("flux rest binary", 20, flux_binary),
    Kind("flux rest guided", 7, flux_guided),
    Kind("flux grpc", 20, flux_grpc),
    Kind("flux openai", 20, flux_openai),
)
CHAT = (
    Kind("chat text", 18, chat_text),
    Kind("chat long prompt", 5, chat_long),
    Kind("chat stream", 20, chat_text_stream),
    Kind("chat picture", 17, chat_picture),
    Kind("chat picture stream", 14, chat_picture_stream),
    Kind("chat photo", 4, chat_photo),
    Kind("chat choices", 6, chat_choices),
    Kind("chat rest", 6, chat_v2_json),
    Kind("chat rest binary", 6, chat_v2_binary),
    Kind("chat grpc", 8, chat_grpc),
)
CHEAP = (
    Kind("cheap chat", 5, cheap_chat),
    Kind("cheap picture", 3, cheap_picture),
    Kind("cheap grpc", 2, cheap_grpc),
)
MIXES: Mapping[str, tuple[Kind, ...]] = {
    "flux": FLUX,
    "qwen-vl": CHAT,
    # as many requests of one room as of the other
    "mixed": (*FLUX, *CHAT),
    "cheap": CHEAP,
    # everything, most of it cheap: many requests in little time
    "small": (*FLUX, *CHAT, *(replace(kind, weight=60 * kind.weight) for kind in CHEAP)),
    **{kind.name: (kind,) for kind in CHEAP},
    "fresh pictures": (Kind("fresh picture", 1, cheap_fresh),),
    "photos": (Kind("chat photo", 1, chat_photo),),
    "one picture": (Kind("one picture", 1, partial(_fixed, rows=1, side=64, steps=8)),),
    "large pictures": (Kind("large pictures", 1, partial(_fixed, rows=1, side=128, steps=20)),),
    "60 rows": (Kind("60 rows", 1, partial(_fixed, rows=60, side=64, steps=100)),),
    "one chat": (Kind("one chat", 1, partial(_tokens, choices=1, most=16)),),
    "chats": (Kind("chats", 1, partial(_tokens, choices=1, most=32)),),
    "long chats": (Kind("long chats", 1, partial(_tokens, choices=1, most=200)),),
    "n=16": (Kind("n=16", 1, partial(_tokens, choices=16, most=256)),),
}


def pooled(kind: Kind, variant: int) -> Ask:
    key = f"{kind.name}/{variant}"
    return replace(kind.draw(random.Random(key), ""), key=key)


def pool(mix: str) -> list[Ask]:
    """All requests of a mix whose solo answers are made beforehand."""
    return [pooled(kind, variant) for kind in MIXES[mix] for variant in range(VARIANTS)]


def draw(mix: str, rng: random.Random, serial: str, compared_share: float) -> Ask:
    """The next request of a mix."""
    kinds = MIXES[mix]
    kind = rng.choices(kinds, [each.weight for each in kinds])[0]
    if rng.random() < compared_share:
        return pooled(kind, rng.randrange(VARIANTS))
    return kind.draw(rng, serial)
