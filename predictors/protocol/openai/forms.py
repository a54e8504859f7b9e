"""A form's fields as the JSON body that they stand for, so that both are checked by the same rules.

A form has texts only: a rule's schema says which are numbers, flags, lists or objects. The client
of OpenAI spreads lists and objects over names with brackets, such as `image[]` and
`loras[][name]`; JSON text is taken in their place. An empty text is null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.http.multipart import Part
from predictors.protocol.openai.fields import MAX_NAME, DescribedRule, Schema

MAX_TEXT_BYTES = 2**20  # of one field that is no file

_NAME = re.compile(r"([^\[\]]++)((?:\[[^\[\]]*+\])*+)")
_WHOLE = re.compile(r"[+-]?[0-9]{1,32}", re.ASCII)
_NUMBER = re.compile(r"[0-9.eE+-]{1,32}", re.ASCII)

Keys = tuple[str, ...]
Entry = tuple[Keys, str]


def body_of_form(
    parts: Sequence[Part],
    rules: Mapping[str, DescribedRule],
    *,
    files: Collection[str],
    may_be_empty: Collection[str],
) -> dict[str, Any]:
    """The body, whose fields are not checked yet. `files` are the names of fields that hold files:
    bytes, or a list of bytes where there are several or the name has brackets. A text of the
    fields `may_be_empty` is not null when it is empty.

    Raises `InvalidRequest` for fields that contradict each other, and for texts that are not UTF-8.
    """
    texts: dict[str, list[Entry]] = {}
    body: dict[str, Any] = {}
    for part in parts:
        name, keys = _split(part.name)
        if name in files:
            _add_file(body, name, keys, part.data)
        else:
            texts.setdefault(name, []).append((keys, _text(name, part)))
    for name, entries in texts.items():
        schema = rules[name].schema if name in rules else {}
        body[name] = _value(name, entries, schema, is_kept=name in may_be_empty)
    return body


def _split(name: str) -> tuple[str, Keys]:
    """`loras[][name]` as `loras` and its keys, here the empty one and `name`."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, ()  # of a field that no rule has
    return found[1], tuple(found[2][1:-1].split("][")) if found[2] else ()


def _add_file(body: dict[str, Any], name: str, keys: Keys, data: bytes) -> None:
    if len(keys) > 1 or (keys and keys[0].strip("0123456789")):
        raise InvalidRequest(f"a file can't be named {_shown(name, keys)}", param=name)
    if not data:  # a browser's file field that was left empty
        return
    before = body.get(name)
    if before is None:
        body[name] = [data] if keys else data
    elif isinstance(before, list):
        before.append(data)
    else:
        body[name] = [before, data]


def _text(name: str, part: Part) -> str:
    if len(part.data) > MAX_TEXT_BYTES:
        short = name[:MAX_NAME]
        raise TooLarge(
            f"{short} has {len(part.data)} bytes; at most {MAX_TEXT_BYTES} are read of a text in "
            "a form",
            param=short,
        )
    return part.text()


def _value(name: str, entries: Sequence[Entry], schema: Schema, *, is_kept: bool) -> Any:
    shapes = {tuple(key == "" for key in keys) for keys, _ in entries}
    texts = [text for _, text in entries]
    if shapes == {()}:
        if len(entries) > 1:
            short = name[:MAX_NAME]
            raise InvalidRequest(f"{short!a} is in the form {len(entries)} times", param=short)
        return texts[0] if is_kept and not texts[0] else value_of(texts[0], schema)
    items = schema.get("items", {})
    if shapes == {(True,)}:
        return [value_of(text, items) for text in texts]
    if shapes == {(False,)}:
        return _object(name, [(keys[0], text) for keys, text in entries], schema)
    if shapes == {(True, False)}:
        return _rows(name, [(keys[1], text) for keys, text in entries], items)
    raise InvalidRequest(
        f"{_shown(name, entries[-1][0])} can't be read beside the other fields of this name; "
        "send it as JSON text",
        param=name[:MAX_NAME],
    )


def _object(name: str, pairs: Sequence[tuple[str, str]], schema: Schema) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text in pairs:
        if key in found:
            short = name[:MAX_NAME]
            raise InvalidRequest(f"{_shown(name, (key,))} is in the form twice", param=short)
        found[key] = value_of(text, _property(schema, key))
    return found


def _rows(name: str, pairs: Sequence[tuple[str, str]], items: Schema) -> list[dict[str, Any]]:
    # the client sends a key of all objects, then the next key of all of them
    columns: dict[str, list[Any]] = {}
    for key, text in pairs:
        columns.setdefault(key, []).append(value_of(text, _property(items, key)))
    counts = {key: len(column) for key, column in columns.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{_shown(name, ('', key))} {n}" for key, n in list(counts.items())[:8])
        raise InvalidRequest(
            f"the form's fields of {name[:MAX_NAME]} differ in number: {shown}; send it as JSON "
            "text",
            param=name[:MAX_NAME],
        )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _property(schema: Schema, key: str) -> Schema:
    found: Schema = schema.get("properties", {}).get(key, {})
    return found


def value_of(text: str, schema: Schema) -> Any:
    """The JSON value that `text` stands for where `schema` describes the field: None for an empty
    one, and the text itself where it is no value of the schema's types."""
    if not text:
        return None
    if "enum" in schema:
        return next((each for each in schema["enum"] if _is_written(each, text)), text)
    kinds = _types(schema)
    if "string" in kinds:
        return text
    if kinds & {"integer", "number"} and (number := _number(text)) is not None:
        return number
    if "boolean" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kinds & {"array", "object"}:
        try:
            return parse_json(text.encode("utf-8"))
        except InvalidRequest:
            return text
    return text


def _is_written(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return value == text
    # Python's libraries write `True`
    return text.lower() == json.dumps(value)


def _number(text: str) -> int | float | None:
    if _WHOLE.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _types(schema: Schema) -> set[str]:
    """The types of a schema and of its alternatives."""
    kind = schema.get("type", ())
    found = {kind} if isinstance(kind, str) else set(kind)
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _types(option)
    return found


def _shown(name: str, keys: Keys) -> str:
    whole = name + "".join(f"[{key}]" for key in keys)
    return ascii(whole[:MAX_NAME])
