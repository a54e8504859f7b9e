"""Tries a folder's chat template and tokenizer within limits of work, before a server is made of
them. Descriptions of folders use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from predictors.chat.bounded_work import MOST_CHARACTERS, TooMuchWork, limited_work
from predictors.chat.chat_template import ChatTemplate
from predictors.chat.chat_tokenizer import read_chat_tokenizer
from predictors.chat.request import Message
from predictors.chat.template_checks import PROBES, check_template
from predictors.chat.template_files import read_template
from predictors.chat.token_files import NAMED_TOKENS


def check_stored_template(checkpoint: Path, tokens: Mapping[str, int]) -> str:
    """The prompt of a short turn. Raises `EngineFailed` for a template or a tokenizer that a start
    would refuse. `tokens` are `read_tokens`'s."""
    template = read_template(checkpoint)
    found = read_chat_tokenizer(checkpoint)
    tokenizer = found.tokenizer
    bounded = ChatTemplate(template, found.special, BoundedEnvironment)

    def prompt_of(messages: Sequence[Message]) -> str:
        with limited_work():
            turns = [{"role": each.role, "content": _content(each)} for each in messages]
            text: str = bounded.render(turns, add_generation_prompt=True)
        if len(text) > MOST_CHARACTERS:
            raise TooMuchWork
        return text

    def tokens_of(messages: Sequence[Message]) -> list[int]:
        text = prompt_of(messages)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    check_template(template, tokens_of, tokenizer, tokens[NAMED_TOKENS["image_token_id"]])
    return prompt_of(PROBES["a turn of text"])


def _content(message: Message) -> str | list[dict[str, str]]:
    """As `ChatPreparer` gives it to templates."""
    if len(message.parts) == 1 and isinstance(message.parts[0], str):
        return message.parts[0]
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.parts
    ]


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Refuses repetitions and powers that `limited_work` can't cut short."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(v) if isinstance(v, str | list | tuple) else v for v in (left, right)]
        is_whole = all(isinstance(size, int) for size in sizes)
        if is_whole and (
            sizes[0] * sizes[1] > MOST_CHARACTERS
            if operator == "*"
            else abs(sizes[0]).bit_length() * sizes[1] > MOST_CHARACTERS
        ):
            raise TooMuchWork
        return super().call_binop(context, operator, left, right)
