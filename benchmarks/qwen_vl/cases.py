"""The requests of the Qwen benchmark: cases, their conversations and pictures.

Pictures are smooth shapes under mild noise, as JPEG of quality 90, all different, as large as
photographs (1024x1024 about 350 KB). The same seed gives the same requests.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_WORDS = 36
"""Of a request's text: about 64 tokens with the template's own, held by a test."""
NUM_TOKENS = 128
QUALITY = 90
NOISE = 10.0
WORDS = (
    "a", "large", "small", "red", "blue", "green", "yellow", "black", "white", "orange", "pink",
    "circle", "square", "triangle", "star", "cross", "to", "the", "left", "right", "of", "above",
    "below", "and", "on",
)  # fmt: skip
"""One token each, with the space before it."""
TURNS = 3
CONSTRAINED_EVERY = 3
"""Of a case with a grammar: the other conversations have none."""
LIST_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "figures",
        "strict": True,
        "schema": {
            "type": "array",
            "minItems": 40,
            "maxItems": 60,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 4, "maxLength": 16},
                    "kind": {"enum": ["circle", "square", "triangle", "star"]},
                    "count": {"type": "integer", "minimum": 0, "maximum": 9999},
                },
                "required": ["name", "kind", "count"],
                "additionalProperties": False,
            },
        },
    },
}
"""A list that is not over within `NUM_TOKENS` tokens."""


def is_constrained(number: int) -> bool:
    """True if this conversation of a case with a grammar is held to it."""
    return number % CONSTRAINED_EVERY == 0


@dataclass(frozen=True, slots=True)
class Case:
    """`clients` closed loops: each client sends its next request when the last one is answered."""

    clients: int
    kind: str
    """`text`, or pictures as `WIDTHxHEIGHT`, `4 WIDTHxHEIGHT`; `same WIDTHxHEIGHT` repeats one
    picture; `turns WIDTHxHEIGHT` are conversations about one. In `grammar text` every third answer
    is held to a JSON schema."""
    requests: int
    """In all, of all clients, after the warm-up."""
    tokens: int = NUM_TOKENS

    def __str__(self) -> str:
        return f"{self.clients} x {self.kind}"

    @property
    def pictures(self) -> int:
        """Per request."""
        if self.size is None:
            return 0
        first = self.kind.split()[0]
        return int(first) if first.isdigit() else 1

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the pictures."""
        if self.kind.endswith("text"):
            return None
        width, _, height = self.kind.split()[-1].partition("x")
        return int(width), int(height)

    @property
    def is_same(self) -> bool:
        return self.kind.startswith("same")

    @property
    def has_grammar(self) -> bool:
        return self.kind.startswith("grammar")

    @property
    def turns(self) -> int:
        """Requests of a conversation."""
        return TURNS if self.kind.startswith("turns") else 1


def text(seed: int, words: int = NUM_WORDS) -> str:
    """A different one for every seed, from its first word on."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return " ".join(chosen)


class Pictures:
    """Makes JPEGs of one size, a different one for every seed; the costly noise is drawn once."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (height, width)
        chance = np.random.default_rng(7)
        noise = chance.normal(0.0, NOISE, (height + 64, width + 64, 1))
        self._noise = noise.astype(np.float32)

    def jpeg(self, seed: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.pixels(seed)).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def pixels(self, seed: int) -> NDArray[np.uint8]:
        """(height, width, 3)."""
        height, width = self._size
        chance = np.random.default_rng(seed)
        coarse = Image.fromarray(chance.integers(30, 226, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        down, right = chance.integers(0, 64, 2)
        noise = self._noise[down : down + height, right : right + width]
        return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


class Conversations:
    """The requests of one case: `opening` begins a conversation, `reply` goes on with it."""

    def __init__(self, case: Case, model: str) -> None:
        self._case = case
        self._model = model
        self._pictures = Pictures(*case.size) if case.size else None

    def opening(self, number: int) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url(jpeg)}} for jpeg in self.files(number)
        ]
        parts.append({"type": "text", "text": text(number)})
        body = self._body([{"role": "user", "content": parts}])
        if self._case.has_grammar and is_constrained(number):
            body |= {"response_format": LIST_FORMAT, "ignore_eos": False}
        return body

    def files(self, number: int) -> list[bytes]:
        if self._pictures is None:
            return []
        first = 0 if self._case.is_same else number * self._case.pictures
        return [self._pictures.jpeg(first + i) for i in range(self._case.pictures)]

    def reply(self, before: dict[str, Any], answer: str, number: int) -> dict[str, Any]:
        turns = [
            *before["messages"],
            {"role": "assistant", "content": answer},
            {"role": "user", "content": text(number)},
        ]
        return self._body(turns)

    def _body(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": self._case.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
