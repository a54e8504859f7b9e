"""The bodies of `POST /tokenize` and `POST /detokenize`, which vLLM has, checked field by field.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai import chat_body
from predictors.protocol.openai.chat_body import ChatBody, chat_of
from predictors.protocol.openai.completions_body import MAX_IDS, token_ids
from predictors.protocol.openai.fields import (
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    dropped,
    flag,
    read_fields,
    require,
    said,
    text,
    wrong,
)
from predictors.protocol.openai.film_fields import MEDIA_FIELDS
from predictors.protocol.openai.messages import MAX_TEXT


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class TokenizeBody:
    """A checked body: a `prompt`, or a `chat`. `model` is empty where it is left out."""

    model: str
    prompt: str | None
    chat: ChatBody | None
    return_token_strs: bool = False


@dataclass(frozen=True)
class DetokenizeBody:
    model: str
    tokens: tuple[int, ...]


def decode_tokenize_body(raw: bytes) -> DecodedBody[TokenizeBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_tokenize_body)


def decode_detokenize_body(raw: bytes) -> DecodedBody[DetokenizeBody]:
    """As `decode_tokenize_body`."""
    return check_body(parse_json(raw), read_detokenize_body)


def read_tokenize_body(body: object) -> TokenizeBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, TOKENIZE_FIELDS)
    model, prompt = read.setdefault("model", ""), read.pop("prompt", None)
    as_texts = read.pop("return_token_strs", False)
    if prompt is None:
        require(read, "messages")
        return TokenizeBody(model, None, chat_of(read), as_texts)
    for name in read:
        if name != "model":
            raise InvalidRequest(f"{name} does not go with prompt; give one of both", param=name)
    return TokenizeBody(model, prompt, None, as_texts)


def read_detokenize_body(body: object) -> DetokenizeBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, DETOKENIZE_FIELDS)
    require(read, "tokens")
    return DetokenizeBody(read.get("model", ""), read["tokens"])


# -- fields ----------------------------------------------------------------------------------------
@described(
    {"type": "array", "maxItems": MAX_IDS, "items": {"type": "integer", "minimum": 0}},
)
def _tokens(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise wrong(name, "a list of token ids", value)
    return token_ids(name, value)


FROM_CHAT = (
    "messages", "add_generation_prompt", "continue_final_message", "chat_template",
    "chat_template_kwargs", "tools", *MEDIA_FIELDS,
)  # fmt: skip
"""Fields with the meaning that they have in a chat."""

TOKENIZE_FIELDS: dict[str, DescribedRule] = {
    "model": said("Name of the model; needed where several models have tokens.", text()),
    "prompt": said("A text without a chat template.", text(at_most=MAX_TEXT)),
    **{name: chat_body.FIELDS[name] for name in FROM_CHAT},
    "return_token_strs": said("Answer with the text of each token too.", flag, default=False),
    "add_special_tokens": dropped(bool, why="the models here begin no text with a token of theirs"),
}
DETOKENIZE_FIELDS: dict[str, DescribedRule] = {
    "model": TOKENIZE_FIELDS["model"],
    "tokens": said("Ids of tokens, in order.", _tokens),
}
