"""The OpenAI routes of the OpenAPI document, from the rules of their bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictors.protocol.http.multipart import FORM_MEDIA
from predictors.protocol.openai import (
    chat_body,
    completions_body,
    edits_body,
    images_body,
    responses_body,
    tokens_body,
)
from predictors.protocol.openai.fields import DescribedRule, object_schema, one_of, or_null
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openapi.answers import chat_answer_schemas
from predictors.protocol.openapi.parts import (
    JSON_TYPE,
    Json,
    complete_object,
    component_name,
    error_answers,
    get_operation,
    json_content,
    path_parameter,
    probe_operation,
    schema_ref,
)
from predictors.protocol.serves import Served, ServesChat, ServesEdits, ServesImages, ServesTokens

_OF_TEXT = (
    ("/chat/completions", "chat", chat_body.FIELDS, ("model", "messages")),
    ("/responses", "responses", responses_body.FIELDS, ("model", "input")),
    ("/completions", "completions", completions_body.FIELDS, ("model", "prompt")),
)
_OF_PICTURES = (
    ("/images/generations", "images", images_body.FIELDS, ("model", "prompt")),
    ("/images/edits", "edits", edits_body.FIELDS, ("model", "prompt")),
)
_OF_TOKENS = (
    ("tokenize", tokens_body.TOKENIZE_FIELDS, ()),
    ("detokenize", tokens_body.DETOKENIZE_FIELDS, ("tokens",)),
)
_OBJECTS = {"responses": "response", "completions": "text_completion"}
"""OpenAI's `object` of an answer, by the name of its route."""
_KINDS = {"images": ServesImages, "edits": ServesEdits}
_PICTURES = ("image", "images")
_BINARY: Json = {"type": "string", "format": "binary"}


def openai_paths(names: Mapping[str, Served], schemas: Json, *, has_urls: bool) -> Json:
    """The routes that serve these models. Adds the schemas of their bodies to `schemas`."""
    models = list(dict.fromkeys(names.values()))
    paths = _openai_listing(names)
    for route, name, fields, required in (*_OF_TEXT, *_OF_PICTURES):
        kind = _KINDS.get(name, ServesChat)
        served = [model for model in models if isinstance(model, kind)]
        if served:
            taken = fields if has_urls or kind is ServesChat else _without_urls(fields)
            either = _PICTURES if kind is ServesEdits else ()
            body = _openai_body(served, names, name, taken, required, schemas, either)
            post = _openai_post(name, body)
            if kind is ServesEdits:
                form = {"schema": _form_schema(taken, required)}
                post["requestBody"]["content"][FORM_MEDIA] = form
            if name in _OBJECTS:
                post["responses"]["200"] |= _object_content(name)
            elif kind is ServesChat:
                schemas |= chat_answer_schemas()
                post["responses"]["200"] |= _chat_content()
            paths[f"/v1{route}"] = {"post": post}
    return paths | _token_paths(models, names, schemas)


def _token_paths(models: Sequence[Served], names: Mapping[str, Served], schemas: Json) -> Json:
    """vLLM's routes, whose bodies need no model."""
    served = [model for model in models if isinstance(model, ServesTokens)]
    paths: Json = {}
    for name, fields, required in _OF_TOKENS if served else ():
        body = _openai_body(served, names, name, fields, required, schemas, ())
        post = _openai_post(name, body)
        del post["responses"]["200"]["content"]["text/event-stream"]
        paths[f"/{name}"] = {"post": post}
    return paths


def _chat_content() -> Json:
    """The media types of a chat's answer."""
    found = json_content(schema_ref("ChatAnswer"))
    chunk = {"contentMediaType": JSON_TYPE, "contentSchema": schema_ref("ChatChunk")}
    about = "Server-sent events, the last of which is [DONE]"
    event = {"type": "string", "description": about, **chunk}
    found["content"]["text/event-stream"] = {"schema": event}
    return found


def _object_content(name: str) -> Json:
    """The media types of an answer whose fields are OpenAI's."""
    fields: Json = {"id": {"type": "string"}, "object": {"const": _OBJECTS[name]}}
    found = json_content(complete_object(fields))
    found["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return found


def _form_schema(fields: Mapping[str, DescribedRule], required: Sequence[str]) -> Json:
    """The form of an edit: its pictures are files, its other values are written as text."""
    schema = object_schema(fields, *required)
    several: Json = {"type": "array", "maxItems": edits_body.MAX_PICTURES, "items": _BINARY}
    schema["properties"] |= {"image": _BINARY, "image[]": several, "mask": _BINARY}
    del schema["properties"]["images"]
    return {**schema, "anyOf": _one_of_fields(("image", "image[]"))}


def _one_of_fields(names: Sequence[str]) -> list[Json]:
    return [{"required": [name]} for name in names]


def _without_urls(fields: Mapping[str, DescribedRule]) -> Mapping[str, DescribedRule]:
    return {**fields, "response_format": one_of(images_body.B64_JSON)}


def _openai_body(
    models: Sequence[Served],
    names: Mapping[str, Served],
    route: str,
    fields: Mapping[str, DescribedRule],
    required: Sequence[str],
    schemas: Json,
    either: Sequence[str],
) -> Json:
    """`either`: fields one of which is required as well."""
    refs = []
    for index, model in enumerate(models):
        name = f"{component_name(model.name)}_{index}_{route}"
        schemas[name] = body_schema(model, fields, required)
        own = [each for each, served in names.items() if served is model]
        one: Json = {"type": "string", "enum": own}
        schemas[name]["properties"]["model"] = one if "model" in required else or_null(one)
        if either:
            schemas[name]["anyOf"] = _one_of_fields(either)
        refs.append(schema_ref(name))
    return refs[0] if len(refs) == 1 else {"oneOf": refs}


def body_schema(
    model: Served, fields: Mapping[str, DescribedRule], required: Sequence[str]
) -> Json:
    """The schema of an OpenAI body for one model: the route's rules, and the model's own ranges
    where its V2 parameters have the same name."""
    schema = object_schema(fields, *required)
    properties = schema["properties"]
    for name, own in model.get_parameters().items():
        if name in properties and ("enum" in own or own["type"] in ("integer", "number")):
            properties[name] = or_null(own)
    return schema


def _openai_post(name: str, body: Json) -> Json:
    answers = json_content({"type": "object"})
    answers["content"]["text/event-stream"] = {}
    return {
        "operationId": f"openai_{name}",
        "summary": f"OpenAI {name}",
        "requestBody": json_content(body, required=True),
        "responses": {
            "200": {"description": "The answer", **answers},
            **error_answers("OpenAIError"),
        },
    }


def _openai_listing(names: Mapping[str, Served]) -> Json:
    model = path_parameter("model", {"type": "string", "enum": list(names)})
    file = path_parameter("file", {"type": "string"})
    picture = {"description": "The file", "content": {"image/*": {}}}
    error = json_content(schema_ref("OpenAIError"))
    missing = {"description": "There is none of this name", **error}
    gone = {"description": "The address has expired", **error}
    fetch = get_operation("picture_file", "A picture that was answered by address") | {
        "parameters": [file]
    }
    fetch["responses"] = {"200": picture, "404": missing, "410": gone}
    one = {**probe_operation("openai_model", "One model"), "parameters": [model]}
    one["responses"]["404"] = missing
    return {
        "/v1/models": {"get": get_operation("openai_models", "The models")},
        "/v1/models/{model}": {"get": one},
        f"/v1{FILES_ROUTE}/{{file}}": {"get": fetch},
    }
