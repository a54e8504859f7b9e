"""Renders and tokenises conversations by the files of a folder alone, with Jinja and `tokenizers`:
as transformers does, whose import takes seconds. Descriptions of folders use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, models, pre_tokenizers

from predictors.chat.bounded_work import MOST_CHARACTERS, TooMuchWork, limited_work
from predictors.chat.request import Message
from predictors.chat.template_checks import check_template
from predictors.chat.template_files import read_template
from predictors.chat.token_files import NAMED_TOKENS
from predictors.compute.checkpoint.folder import (
    SPECIAL_TOKENS,
    check_texts,
    read_if_there,
    read_json,
    read_whole,
    reading,
)

SETTINGS = "tokenizer_config.json"


def check_stored_template(checkpoint: Path, tokens: Mapping[str, int]) -> None:
    """Raise `EngineFailed` for a template or a tokenizer that a start would refuse. `tokens` are
    `read_tokens`'s."""
    template = read_template(checkpoint)
    special = _special_tokens(checkpoint)
    with reading("the tokenizer"):
        tokenizer = read_tokenizer(checkpoint)

    def tokens_of(messages: Sequence[Message]) -> list[int]:
        with limited_work():
            text = _render(template or "", messages, special)
        if len(text) > MOST_CHARACTERS:
            raise TooMuchWork
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    check_template(template, tokens_of, tokenizer, tokens[NAMED_TOKENS["image_token_id"]])


def read_tokenizer(checkpoint: Path) -> Any:
    """The byte-level BPE of `tokenizer.json`, or of `vocab.json` and `merges.txt`. Its added tokens
    are those of `tokenizer_config.json` where that lists them, as in transformers."""
    settings = read_if_there(checkpoint, SETTINGS)
    added = settings.get("added_tokens_decoder")
    listed = None
    if isinstance(added, Mapping):
        listed = [{**ADDED, **token, "id": int(i)} for i, token in added.items()]
    if (checkpoint / "tokenizer.json").is_file():
        whole = read_json(checkpoint, "tokenizer.json", "tokenizer.json")
        if listed is not None and _named(listed) != _named(whole.get("added_tokens") or ()):
            whole["added_tokens"] = sorted(listed, key=lambda token: token["id"])
        return Tokenizer.from_str(json.dumps(whole))
    vocabulary = read_json(checkpoint, "vocab.json", "vocab.json")
    lines = read_whole(checkpoint / "merges.txt", "merges.txt").decode("utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    bpe = models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in pairs])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([token["content"] for token in listed or ()])
    return tokenizer


ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
"""Of an added token, as `tokenizers` writes it."""


def _named(added: Sequence[Mapping[str, Any]]) -> set[tuple[str, int]]:
    return {(token["content"], token["id"]) for token in added}


def _special_tokens(checkpoint: Path) -> dict[str, str]:
    """`eos_token` and the like, which templates may use by name."""
    found = {}
    settings = read_if_there(checkpoint, SETTINGS)
    check_texts(settings, SETTINGS, SPECIAL_TOKENS)
    for name, token in settings.items():
        written = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(written, str):
            found[name] = written
    return found


# -- template --------------------------------------------------------------------------------------
def _render(template: str, messages: Sequence[Message], special: Mapping[str, str]) -> str:
    turns = [{"role": each.role, "content": _content(each)} for each in messages]
    return (
        template_environment()
        .from_string(template)
        .render(**special, messages=turns, tools=None, documents=None, add_generation_prompt=True)
    )


def _content(message: Message) -> str | list[dict[str, str]]:
    """As `ChatPreparer` gives it to templates."""
    if len(message.parts) == 1 and isinstance(message.parts[0], str):
        return message.parts[0]
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.parts
    ]


class GenerationBlock(Extension):
    """`{% generation %}`, with which templates mark answers for training: its content as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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


def template_environment() -> ImmutableSandboxedEnvironment:
    """With transformers' options, filters and functions."""
    made = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise(message: str) -> None:
    raise TemplateError(message)
