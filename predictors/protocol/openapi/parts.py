"""Parts of the OpenAPI document that routes of all protocols share: answers, errors, references."""

from __future__ import annotations

import re
from typing import Any

from predictors.protocol.faults import RENDERINGS

Json = dict[str, Any]

JSON_TYPE = "application/json"


def get_operation(operation: str, summary: str) -> Json:
    answer = {"description": summary, **json_content({})}
    return {"operationId": operation, "summary": summary, "responses": {"200": answer}}


def probe_operation(operation: str, summary: str) -> Json:
    found = get_operation(operation, summary)
    found["responses"]["503"] = {"description": "Not so", **json_content({})}
    return found


def empty_probe(operation: str, summary: str) -> Json:
    """The same where answers have no body."""
    answers = {"200": {"description": summary}, "503": {"description": "Not so"}}
    return {"operationId": operation, "summary": summary, "responses": answers}


def error_answers(schema: str) -> Json:
    by_status: dict[int, list[str]] = {}
    for rendering in RENDERINGS.values():
        if rendering.status not in (410, 499):  # of pictures' addresses; of callers who left
            code = rendering.code or rendering.type
            by_status.setdefault(rendering.status, []).append(code)
    by_status[429].append("server_overloaded, where the operator prefers it to 503")
    return {
        str(status): {"description": ", ".join(codes), **json_content(schema_ref(schema))}
        for status, codes in sorted(by_status.items())
    }


def complete_object(fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}


def path_parameter(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def json_content(schema: Json, *, required: bool = False) -> Json:
    found: Json = {"content": {JSON_TYPE: {"schema": schema}}}
    return {**found, "required": True} if required else found


def schema_ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def component_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name[:64])
