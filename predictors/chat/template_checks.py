"""Tries a chat template and a tokenizer on a few conversations, before a caller does. Imports
neither torch nor transformers: starts pass the library's rendering, descriptions their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from predictors.chat.bounded_work import TooMuchWork
from predictors.chat.film import Film
from predictors.chat.request import (
    Message,
    Picture,
)
from predictors.compute.checkpoint.folder import reading
from predictors.errors import EngineFailed, InvalidRequest

TEMPLATES = "chat_template.jinja, chat_template.json or tokenizer_config.json"
PICTURE, FILM = Picture(b""), Film(())
VIDEO_TOKEN = "<|video_pad|>"
PROBES: dict[str, tuple[Message, ...]] = {
    "a turn of text": (Message("user", ("first words",)),),
    "a picture": (Message("user", (PICTURE, "first words")),),
    "two pictures": (Message("user", ("first words", PICTURE, PICTURE, "second words")),),
    "a history": (
        Message("system", ("rules here",)),
        Message("user", (PICTURE, "first words")),
        Message("assistant", ("an answer",)),
        Message("user", ("second words",)),
    ),
}
FILM_PROBE = (Message("user", ("first words", FILM, "second words")),)
OPENING = "assistant"
THINK = "<think>"
THINKING = (
    "the chat template opens <think>: an answer begins with the model's reasoning, which ends with "
    "</think> and is part of the text"
)
"""The warning of a start and of `check` about such a folder."""
SPELLED = "Two words, caf\u00e9, \u4e2d, 12.5\n"
CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
"""Tokens that templates write around texts and pictures."""


def check_template(
    template: Any,
    tokens_of: Callable[[Sequence[Message]], list[int]],
    tokenizer: Any,
    image_token: int,
) -> None:
    """Raise `EngineFailed` for a template that is missing, raises, loses a text or a picture, or
    does not open the answer, and for a tokenizer that reads its control tokens as text.

    `tokens_of` renders and tokenises messages as it does for requests.
    """
    if not template:
        raise EngineFailed(f"the checkpoint has no chat template ({TEMPLATES})")
    for written in CONTROL:
        count = len(tokenizer.encode(written, add_special_tokens=False).ids)
        if written in str(template) and count != 1:
            raise EngineFailed(f"the tokenizer reads {written} as {count} tokens, not as one")
    for name, messages in PROBES.items():
        try:
            with reading("the chat template"):  # a template raises anything
                tokens = tokens_of(messages)
        except (InvalidRequest, EngineFailed) as error:
            is_large = isinstance(error.__cause__, TooMuchWork)
            problem = "needs too much time, memory or text for" if is_large else "does not take"
            raise EngineFailed(f"the chat template ({TEMPLATES}) {problem} {name}") from error
        parts = [part for message in messages for part in message.parts]
        pictures = sum(isinstance(part, Picture) for part in parts)
        if tokens.count(image_token) != pictures:
            raise EngineFailed(
                f"the chat template ({TEMPLATES}) makes {tokens.count(image_token)} image tokens "
                f"of {name}, which has {pictures} pictures"
            )
        rest: str = tokenizer.decode(tokens, skip_special_tokens=False)
        for part in parts:
            if isinstance(part, str):
                _, found, rest = rest.partition(part)
                if not found:
                    raise EngineFailed(f"the chat template ({TEMPLATES}) loses text of {name}")
        if OPENING not in rest:
            raise EngineFailed(f"the chat template ({TEMPLATES}) does not open an answer to {name}")


def opens_thinking(prompt: str) -> bool:
    """True for a rendered prompt whose answer begins within `<think>`, as those of Qwen's Thinking
    models do."""
    return prompt.rstrip().endswith(THINK)


def takes_films(tokens_of: Callable[..., list[int]], video_token: int | None) -> bool:
    """True if the chat template has a place for a film between texts."""
    try:
        with reading("the chat template"):
            return tokens_of(FILM_PROBE, films=(VIDEO_TOKEN,)).count(video_token or -1) == 1
    except (InvalidRequest, EngineFailed):
        return False


def check_spelling(bytes_of: Callable[[int], bytes], tokenizer: Any) -> None:
    """Raise `EngineFailed` for a tokenizer whose tokens don't spell their text: answers would be
    written in another alphabet."""
    tokens = tokenizer.encode(SPELLED, add_special_tokens=False).ids
    if b"".join(map(bytes_of, tokens)) != SPELLED.encode():
        raise EngineFailed("the tokenizer is no byte-level BPE: its tokens don't spell texts")
