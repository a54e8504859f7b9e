"""The format that a caller asks an answer to have, and the bounds on what describes it.

Everything here is linear in the description's length. What a grammar can't express is found when
it is compiled, by the model that answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from predictors.errors import InvalidRequest, TooLarge

JSON_OBJECT: Final = "json_object"
JSON_SCHEMA: Final = "json_schema"
REGEX: Final = "regex"
CHOICE: Final = "choice"
GRAMMAR: Final = "grammar"
TOOLS: Final = "tools"

MAX_SCHEMA_BYTES = 128 * 1024  # OpenAI's is 120,000 characters
MAX_SCHEMA_DEPTH = 64  # lists and objects inside of one another
MAX_SCHEMA_VALUES = 20_000
MAX_ENUM = 1000  # values of one `enum`; OpenAI's is 1,000 in all
MAX_PATTERN_CHARS = 2048
MAX_CHOICES = 1000
MAX_CHOICE_CHARS = 64 * 1024  # in all
MAX_GRAMMAR_CHARS = 16 * 1024


@dataclass(frozen=True)
class AnswerFormat:
    """A format: `kind` is one of this module's constants, `text` the canonical JSON
    of a schema or of a list of choices, or a pattern or grammar as it was sent.

    Two that compare equal compile to one grammar: `where` and `fields`, the fields of the request
    that errors name, are left out.
    """

    kind: str
    text: str = field(repr=False)
    where: str = field(default="response_format", compare=False)
    fields: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """For the kind `TOOLS`: the request's field of each schema, by the schema's rule in `text`."""


def schema_format(where: str, schema: Any) -> AnswerFormat:
    """The format of JSON values that a JSON Schema takes. Raises `InvalidRequest` for what is no
    object and `TooLarge` for one beyond the bounds."""
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where} must be a JSON Schema, which is an object", param=where)
    check_schema(where, schema)
    return AnswerFormat(JSON_SCHEMA, canonical(schema, where), where)


def regex_format(where: str, pattern: Any) -> AnswerFormat:
    """The format of texts that a pattern matches as a whole."""
    text = _text(where, pattern, MAX_PATTERN_CHARS)
    return AnswerFormat(REGEX, text, where)


def choice_format(where: str, choices: Any) -> AnswerFormat:
    """The format of one of several texts."""
    if not isinstance(choices, list) or not choices:
        raise InvalidRequest(f"{where} must be a list of at least one string", param=where)
    if len(choices) > MAX_CHOICES:
        message = f"{where} has {len(choices)} choices; at most {MAX_CHOICES} are taken"
        raise TooLarge(message, param=where)
    for i, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            message = f"{where}[{i}] must be a string that is not empty"
            raise InvalidRequest(message, param=f"{where}[{i}]")
    _check_chars(where, sum(map(len, choices)), MAX_CHOICE_CHARS)
    # the same choice twice is one
    return AnswerFormat(CHOICE, canonical(list(dict.fromkeys(choices)), where), where)


def grammar_format(where: str, grammar: Any) -> AnswerFormat:
    """The format of texts that a context-free grammar derives."""
    return AnswerFormat(GRAMMAR, _text(where, grammar, MAX_GRAMMAR_CHARS), where)


def object_format(where: str) -> AnswerFormat:
    """The format of any JSON object."""
    return AnswerFormat(JSON_OBJECT, "", where)


def canonical(value: Any, where: str) -> str:
    """The value as JSON without spaces. Keys keep their order, which is the answer's."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where} holds half a surrogate pair", param=where) from error
    return text


def check_schema(where: str, schema: Any) -> None:
    """Raise `TooLarge` for a JSON value that is too long, too deep or has too many parts."""
    num_values, num_chars = 0, 0
    level: Sequence[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        num_values += len(level)
        num_chars += sum(map(_own_chars, level))
        if num_values > MAX_SCHEMA_VALUES:
            message = f"{where} has more than {MAX_SCHEMA_VALUES} values; send a smaller schema"
            raise TooLarge(message, param=where)
        _check_chars(where, num_chars, MAX_SCHEMA_BYTES)
        level = [part for value in level for part in _parts(where, value)]
        if not level:
            return
    message = f"{where} is nested more than {MAX_SCHEMA_DEPTH} deep; use $defs and $ref"
    raise TooLarge(message, param=where)


def _own_chars(value: Any) -> int:
    """About the characters that a value takes beside its parts."""
    if isinstance(value, str):
        return len(value) + 2
    return sum(map(len, value)) + 4 * len(value) if isinstance(value, dict) else 4


def _parts(where: str, value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return ()
    options = value.get("enum")
    if isinstance(options, list) and len(options) > MAX_ENUM:
        message = f"{where} has an enum of {len(options)} values; at most {MAX_ENUM} are taken"
        raise TooLarge(message, param=where)
    return value.values()


def _text(where: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where} must be a string that is not empty", param=where)
    _check_chars(where, len(value), most)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where} holds half a surrogate pair", param=where) from error
    return value


def _check_chars(where: str, count: int, most: int) -> None:
    if count > most:
        message = f"{where} has {count} characters; at most {most} are taken"
        raise TooLarge(message, param=where)
