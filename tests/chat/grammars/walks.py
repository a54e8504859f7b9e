"""Random walks through the masks of a grammar, and texts token by token."""

from __future__ import annotations

import random

import numpy as np

from predictors.chat.detokenize import Vocabulary
from predictors.chat.grammars.matcher import Grammar, Matcher

VOCAB = 832
ENDS = {800, 802}


def allowed(matcher: Matcher) -> list[int]:
    """The tokens that may follow."""
    words = np.zeros((1, (VOCAB + 31) // 32), np.int32)
    (reason,) = matcher.fill([(matcher, 0)], words)
    if reason is not None:
        raise reason
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def walk(grammar: Grammar, rng: random.Random, most: int) -> tuple[list[int], bool]:
    """Tokens chosen evenly among those allowed, and whether an end token came within `most`."""
    matcher = grammar.matcher()
    tokens: list[int] = []
    while len(tokens) < most:
        token = rng.choice(allowed(matcher))
        assert matcher.accept(token)
        if token in ENDS:
            return tokens, True
        tokens.append(token)
    return tokens, False


def takes(grammar: Grammar, text: str) -> bool:
    """True if the text, byte by byte, is an answer of the grammar."""
    return _follow(grammar.matcher(), text)


def begins(grammar: Grammar, text: str) -> bool:
    """True if the text, byte by byte, begins an answer of the grammar."""
    matcher = grammar.matcher()
    return all(matcher.accept(token) for token in byte_tokens(text))


def _follow(matcher: Matcher, text: str) -> bool:
    return all(matcher.accept(token) for token in byte_tokens(text)) and bool(
        ENDS & set(allowed(matcher))
    )


def byte_tokens(text: str) -> list[int]:
    """One token per byte of UTF-8."""
    return [_BYTES[byte] for byte in text.encode()]


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> bytes:
    return b"".join(map(vocabulary.bytes_of, tokens))


_BYTES: dict[int, int] = {}


def learn_bytes(vocabulary: Vocabulary) -> None:
    """Remember the token of each byte."""
    for token in range(VOCAB):
        raw = vocabulary.bytes_of(token)
        if len(raw) == 1:
            _BYTES.setdefault(raw[0], token)
