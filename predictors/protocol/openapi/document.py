"""The OpenAPI 3.1 document, written from the tables that check requests.

Fields, ranges and defaults are those of the models that are served.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from predictors import __version__
from predictors.protocol.error_formats import ERROR_FORMATS, error_format
from predictors.protocol.http.access import is_open
from predictors.protocol.openapi.openai import openai_paths, openai_schemas
from predictors.protocol.openapi.parts import (
    Json,
    component_names,
    error_answers,
    error_responses,
    for_generators,
    get_operation,
    path_parameter,
    text_operation,
)
from predictors.protocol.openapi.v2 import V2_SCHEMAS, model_paths, server_paths
from predictors.protocol.serves import Served

_DESCRIPTION = (
    "V2 inference over REST, the OpenAI API and Anthropic's messages. What is under /v1 is under "
    "/openai/v1 as well, but for the messages. "
    "V2 parameters may come as numeric strings. A field that is not in a schema is refused."
)
TAGS = {
    "Pictures": "Drawing and editing, as OpenAI has it.",
    "Text": "Chats, responses, completions and tokens, as OpenAI and vLLM have them.",
    "Messages": "Conversations as Anthropic has them.",
    "Models": "The models, as OpenAI lists them.",
    "V2": "KServe's Open Inference Protocol.",
    "Health": "Probes, which need no key.",
    "Server": "What describes and watches the server.",
}


def openapi_document(
    names: Mapping[str, Served], *, has_urls: bool, others: Collection[str] = ()
) -> Json:
    """All routes that serve these models, V2's under the first name of a model. `has_urls`:
    pictures may be asked for by address. `others`: paths of further routes that are served."""
    first = {model.name: name for name, model in reversed(list(names.items()))}
    models = list(dict.fromkeys(names.values()))
    made = component_names([model.name for model in models])
    schemas: Json = {**V2_SCHEMAS, **openai_schemas()}
    paths: Json = server_paths(names)
    for model in models:
        paths |= model_paths(model, first[model.name], made[model.name], schemas)
    paths |= openai_paths(names, made, schemas, has_urls=has_urls)
    paths |= {path: item for path, item in _other_paths().items() if path in others}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vision Predictors",
            "version": __version__,
            "summary": "Text to image and image to text over V2 and OpenAI's API",
            "description": _DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "security": [],
        "paths": _completed(paths),
        "components": {
            "schemas": for_generators(_used(paths, schemas)),
            "responses": _used_answers(paths),
        },
    }


def _other_paths() -> Json:
    """Routes that some servers have, by their path."""
    page, script = "A page that shows this document", "A file of the page"
    plain, html = "text/plain", "text/html"
    file = text_operation("docs_file", script, "text/*")
    file["parameters"] = [path_parameter("file", {"type": "string"}, "Name of the file.")]
    file["responses"] |= error_answers("V2Error", 404)
    play = text_operation("playground_file", script, "text/*")
    play |= {key: file[key] for key in ("parameters", "responses")}
    drawn = "A page to draw and chat with"
    about = "This document"
    return {
        "/openapi.json": {"get": get_operation("openapi", about, {"type": "object"})},
        "/proto": {"get": text_operation("proto", "The gRPC protocol as a .proto file", plain)},
        "/metrics": {"get": text_operation("metrics", "Prometheus metrics", plain)},
        "/docs": {"get": text_operation("docs", page, html)},
        "/docs/": {"get": _redirect("docs_redirect")},
        "/docs/{file}": {"get": file},
        "/playground": {"get": text_operation("playground", drawn, html)},
        "/playground/": {"get": _redirect("playground_redirect")},
        "/playground/{file}": {"get": play},
    }


def _redirect(operation: str) -> Json:
    where = {"location": {"description": "The page.", "schema": {"type": "string"}}}
    answers = {"3XX": {"description": "Elsewhere", "headers": where}}
    about = "The page without the slash"
    return {"operationId": operation, "summary": about, "responses": answers}


def _completed(paths: Json) -> Json:
    """The paths, which are changed, with tags, and with the failures that precede any route."""
    for path, item in paths.items():
        schema = error_format(path).schema
        for operation in (each for each in item.values() if isinstance(each, dict)):
            operation["tags"] = [_tag(path)]
            operation["description"] = f"{operation['summary']}."
            if not is_open(path):
                operation["responses"] = operation["responses"] | error_answers(schema, 403, 421)
            if "{" in path:  # control characters in it
                operation["responses"] = operation["responses"] | error_answers(schema, 400)
    return paths


def _tag(path: str) -> str:
    if is_open(path):
        return "Health"
    for start, tag in (
        ("/v1/images", "Pictures"),
        ("/v1/models", "Models"),
        ("/v1/messages", "Messages"),
        ("/v1/", "Text"),
        ("/tokenize", "Text"),
        ("/detokenize", "Text"),
        ("/v2", "V2"),
    ):
        if path.startswith(start):
            return tag
    return "Server"


def _used(paths: Json, schemas: Json) -> Json:
    """The schemas that paths or each other refer to."""
    found: dict[str, Json] = {}
    waiting: list[object] = [paths, *(schemas[each.schema] for each in ERROR_FORMATS)]
    found |= {each.schema: schemas[each.schema] for each in ERROR_FORMATS}
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            name = str(value.get("$ref", "")).rpartition("/schemas/")[2]
            if name in schemas and name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
    return found


def _used_answers(paths: Json) -> Json:
    """The responses that operations refer to."""
    names = {
        answer["$ref"].rpartition("/")[2]
        for item in paths.values()
        for operation in item.values()
        if isinstance(operation, dict)
        for answer in operation["responses"].values()
        if "$ref" in answer
    }
    return {name: answer for name, answer in error_responses().items() if name in names}
