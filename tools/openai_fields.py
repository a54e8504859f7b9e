"""Generates docs/openai-fields.md from the rule tables of predictors/protocol/openai."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.protocol.anthropic import content_blocks, messages_body, tool_blocks
from predictors.protocol.openai import (
    chat_body,
    clients,
    completions_body,
    edits_body,
    image_clients,
    images_body,
    messages,
    responses_body,
    tokens_body,
)
from predictors.protocol.openai.fields import DescribedRule

PAGE = Path(__file__).resolve().parents[1] / "docs/openai-fields.md"
HEAD = """# Fields of the OpenAI and Anthropic routes

<!-- Written by `make docs` from predictors/protocol/openai and /anthropic: edit the tables. -->

Every field that a body may have, by who sends it. "Ignored" are fields that can't change the
answer, "only" those that are ignored at the values that ask for what is done anyway, and refused
with a 400 at any other. Everything that is not on this page is a 400 with the nearest name. `null`
is the same as leaving a field out. What our own fields mean is in [api.md](api.md#openai); ranges
that depend on the model are in `/openapi.json` of the running server.
"""
SHOWN_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
}
NAMES = {"Other services' names of the same": images_body.SERVICES}
OF_IMAGES = {**NAMES, **image_clients.IMAGE_CLIENTS}
OF_EDITS = {**NAMES, **image_clients.EDIT_CLIENTS}
WIDTH = 80  # characters of a description of values


def files() -> dict[Path, str]:
    """The page, by its path."""
    lines = [HEAD]
    for title, own, tables in (
        ("POST /v1/chat/completions", chat_body.OWN_FIELDS, clients.CHAT_CLIENTS),
        ("POST /v1/responses", responses_body.OWN_FIELDS, responses_body.CLIENTS),
        ("POST /v1/completions", completions_body.OWN_FIELDS, completions_body.CLIENTS),
        (
            "POST /v1/images/generations",
            images_body.OWN_FIELDS,
            OF_IMAGES,
        ),
        (
            "POST /v1/images/edits",
            edits_body.OWN_FIELDS,
            OF_EDITS,
        ),
        ("POST /tokenize", tokens_body.TOKENIZE_FIELDS, {}),
        ("POST /detokenize", tokens_body.DETOKENIZE_FIELDS, {}),
    ):
        lines += [f"## {title}", "", *_table("OpenAI, and our own", own)]
        for client, table in tables.items():
            lines += _table(client, table)
    lines += ["## Messages and their parts", ""]
    own = {n: r for n, r in messages.MESSAGE_FIELDS.items() if n not in _sent_by_clients()}
    lines += _table("A message, OpenAI", own)
    for client, table in clients.MESSAGE_CLIENTS.items():
        lines += _table(f"A message, {client}", table)
    lines += _table("Every part", clients.PART_FIELDS)
    lines += _table("`image_url`", clients.URL_FIELDS)
    lines += _anthropic()
    return {PAGE: "\n".join(lines)}


def _anthropic() -> list[str]:
    lines = ["## POST /v1/messages", "", *_table("Anthropic, and our own", messages_body.FIELDS)]
    lines += _table("Of `count_tokens`", messages_body.COUNT_FIELDS)
    for title, rules in (
        ("A message", content_blocks.MESSAGE),
        ("Block `text`", content_blocks.TEXT_BLOCK),
        ("Block `image`", content_blocks.IMAGE_BLOCK),
        ("`source` of an image", content_blocks.SOURCE),
        ("Block `tool_use`", tool_blocks.TOOL_USE),
        ("Block `tool_result`", content_blocks.TOOL_RESULT),
        ("A tool", tool_blocks.TOOL),
    ):
        lines += _table(title, rules)
    return lines


def _sent_by_clients() -> set[str]:
    return {name for table in clients.MESSAGE_CLIENTS.values() for name in table}


def _table(title: str, rules: Mapping[str, DescribedRule]) -> list[str]:
    rows = [f"| `{name}` | {taken(rule.schema)} |" for name, rule in rules.items()]
    return [f"### {title}", "", "| field | takes |", "|---|---|", *rows, ""]


def taken(schema: Mapping[str, Any]) -> str:
    """The values that a schema takes, in words."""
    said = str(schema.get("description", ""))
    is_only = said.startswith("Ignored, else refused: ")
    if is_only and "enum" not in schema:
        return f"refused: {said.removeprefix('Ignored, else refused: ').rstrip('.')}"
    if is_only:
        values = " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
        return f"only {values}: {said.removeprefix('Ignored, else refused: ').rstrip('.')}"
    if said.startswith("Ignored"):
        return said[0].lower() + said[1:].rstrip(".")
    default = f"default `{json.dumps(schema['default'])}`" if "default" in schema else ""
    return "; ".join(filter(None, [_values(schema), default, said.rstrip(".")]))


def _values(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "anyOf" in schema or "oneOf" in schema:
        options = schema.get("anyOf", schema.get("oneOf"))
        shared = {"type": schema["type"]} if "type" in schema else {}
        found = " or ".join(dict.fromkeys(_values({**shared, **option}) for option in options))
        return found if len(found) <= WIDTH else "see api.md"
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(SHOWN_TYPES[each] for each in kind)
    if kind in ("integer", "number"):
        noun = "whole number" if kind == "integer" else "number"
        if "exclusiveMinimum" in schema:
            return f"{noun} above {schema['exclusiveMinimum']}, at most {schema['maximum']}"
        return f"{noun} from {schema['minimum']} to {schema['maximum']}"
    kinds = kind if isinstance(kind, list) else [kind]
    return " or ".join(SHOWN_TYPES[each] for each in kinds)
