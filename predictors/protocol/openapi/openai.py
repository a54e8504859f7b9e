"""The OpenAI routes of the OpenAPI document, from the rules of their bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from predictors.protocol.anthropic import messages_body
from predictors.protocol.error_formats import ANTHROPIC_ERRORS, error_format
from predictors.protocol.http.multipart import FORM_MEDIA
from predictors.protocol.openai import (
    chat_body,
    completions_body,
    edits_body,
    images_body,
    responses_body,
    tokens_body,
)
from predictors.protocol.openai.fields import DescribedRule, object_schema, one_of, or_null, said
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openai.routes import PREFIXES
from predictors.protocol.openapi.answers import (
    chat_answer_schemas,
    completion_schemas,
    listing_schemas,
    message_schemas,
    picture_schemas,
    response_schemas,
    token_schemas,
)
from predictors.protocol.openapi.examples import examples
from predictors.protocol.openapi.parts import (
    JSON_TYPE,
    Json,
    complete_object,
    error_answers,
    get_operation,
    json_content,
    path_parameter,
    probe_operation,
    schema_ref,
)
from predictors.protocol.openapi.v2 import model_parameter
from predictors.protocol.serves import Served, ServesChat, ServesEdits, ServesImages, ServesTokens

_STRING: Json = {"type": "string"}
_OPTIONAL: Json = {"type": ["string", "null"]}


@dataclass(frozen=True, slots=True)
class _Described:
    """A POST route: its body's fields, its answer and the models that serve it."""

    name: str
    summary: str
    fields: Mapping[str, DescribedRule]
    required: tuple[str, ...]
    kind: type
    answer: str
    event: str = ""
    """Schema of an event; empty where there is no stream."""


_ROUTES = {
    "/v1/chat/completions": _Described(
        "chat", "Answer a conversation", chat_body.FIELDS, ("model", "messages"), ServesChat,
        "ChatAnswer", "ChatChunk",
    ),
    "/v1/responses": _Described(
        "responses", "Answer an input", responses_body.FIELDS, ("model", "input"), ServesChat,
        "ResponseObject", "ResponseEvent",
    ),
    "/v1/completions": _Described(
        "completions", "Go on with a text", completions_body.FIELDS, ("model", "prompt"),
        ServesChat, "CompletionAnswer", "CompletionChunk",
    ),
    "/v1/messages": _Described(
        "messages", "Answer a conversation, as Anthropic", messages_body.FIELDS,
        ("model", "max_tokens", "messages"), ServesChat, "MessageAnswer", "MessageEvent",
    ),
    "/v1/messages/count_tokens": _Described(
        "count_tokens", "Tokens of a conversation", messages_body.COUNT_FIELDS,
        ("model", "messages"), ServesTokens, "MessageTokens",
    ),
    "/v1/images/generations": _Described(
        "images", "Draw pictures", images_body.FIELDS, ("model", "prompt"), ServesImages,
        "PicturesAnswer", "PictureEvent",
    ),
    "/v1/images/edits": _Described(
        "edits", "Draw pictures from a picture", edits_body.FIELDS, ("model", "prompt"),
        ServesEdits, "PicturesAnswer", "PictureEvent",
    ),
    "/tokenize": _Described(
        "tokenize", "Tokens of a text or a chat", tokens_body.TOKENIZE_FIELDS, (), ServesTokens,
        "TokensAnswer",
    ),
    "/detokenize": _Described(
        "detokenize", "Text of tokens", tokens_body.DETOKENIZE_FIELDS, ("tokens",), ServesTokens,
        "TextAnswer",
    ),
}  # fmt: skip
_PICTURES = ("image", "images")
_BINARY: Json = {"type": "string", "format": "binary"}


def openai_schemas() -> Json:
    """Components that routes refer to."""
    error = {"message": _STRING, "type": _STRING, "param": _OPTIONAL, "code": _OPTIONAL}
    return {
        "OpenAIError": complete_object({"error": complete_object(error)}),
        "AnthropicError": _anthropic_error(),
        **chat_answer_schemas(),
        **completion_schemas(),
        **response_schemas(),
        **message_schemas(),
        **token_schemas(),
        **picture_schemas(),
        **listing_schemas(),
    }


def _anthropic_error() -> Json:
    error = complete_object({"type": _STRING, "message": _STRING})
    return complete_object({"type": {"type": "string", "enum": ["error"]}, "error": error})


def openai_paths(
    names: Mapping[str, Served], made: Mapping[str, str], schemas: Json, *, has_urls: bool
) -> Json:
    """The routes that serve these models, whose names in identifiers are `made`. Adds the schemas
    of their bodies to `schemas`."""
    models = list(dict.fromkeys(names.values()))
    paths: Json = {}  # in the order of the page: what answers comes first
    for path, route in _ROUTES.items():
        served = [model for model in models if isinstance(model, route.kind)]
        if not served:
            continue
        fields = route.fields
        if not has_urls and "response_format" in fields and route.event == "PictureEvent":
            fields = _without_urls(fields)
        refs = []
        for model in served:
            name = f"{made[model.name]}_{route.name}"
            own = [each for each, found in names.items() if found is model]
            schemas[name] = _named_body(model, fields, route.required, own)
            if route.kind is ServesEdits:
                schemas[name] |= _one_of_fields(*_PICTURES)
            refs.append(schema_ref(name))
        post = _openai_post(path, route, refs[0] if len(refs) == 1 else {"oneOf": refs})
        post["requestBody"]["content"][JSON_TYPE]["examples"] = examples(route.name, served, names)
        if route.kind is ServesEdits:
            schemas["EditsForm"] = _form_schema(fields, route.required)
            post["requestBody"]["content"][FORM_MEDIA] = {"schema": schema_ref("EditsForm")}
        paths[path] = {"post": post}
    paths |= _openai_listing(names)
    if has_urls and any(isinstance(model, ServesImages | ServesEdits) for model in models):
        paths |= _picture_files()
    for path, item in paths.items():
        item["servers"] = _servers(path)
    return paths


def _servers(path: str) -> list[Json]:
    """The addresses below which a path is served, relative to the document's own."""
    if error_format(path) is ANTHROPIC_ERRORS:
        bases = [""]
    elif path.startswith("/v1/"):
        bases = [prefix.removesuffix("/v1") for prefix in PREFIXES]
    else:
        bases = ["", *PREFIXES]
    return [{"url": f".{base}"} for base in sorted(bases, key=len)]


def _openai_post(path: str, route: _Described, body: Json) -> Json:
    answer = json_content(schema_ref(route.answer))
    if route.event:
        chunk = {"contentMediaType": JSON_TYPE, "contentSchema": schema_ref(route.event)}
        about = "With `stream`: server-sent events, whose data are JSON as below."
        if route.name in ("chat", "completions"):
            about += " The last one is `[DONE]`."
        event = {"type": "string", "description": about, **chunk}
        answer["content"]["text/event-stream"] = {"schema": event}
    return {
        "operationId": f"openai_{route.name}",
        "summary": route.summary,
        "requestBody": json_content(body, required=True),
        "responses": {
            "200": {"description": "The answer", **answer},
            **error_answers(error_format(path).schema),
        },
    }


def _form_schema(fields: Mapping[str, DescribedRule], required: Sequence[str]) -> Json:
    """The form of an edit: its pictures are files, its other values are written as text."""
    schema = object_schema(fields, *required)
    several: Json = {"type": "array", "maxItems": edits_body.MAX_PICTURES, "items": _BINARY}
    schema["properties"] |= {"image": _BINARY, "image[]": several, "mask": _BINARY}
    del schema["properties"]["images"]
    return schema | _one_of_fields("image", "image[]")


def _one_of_fields(one: str, other: str) -> Json:
    """At least one of two fields is needed. Generators of clients take `anyOf` for a union."""
    return {"if": {"not": {"required": [one]}}, "then": {"required": [other]}}


def _without_urls(fields: Mapping[str, DescribedRule]) -> Mapping[str, DescribedRule]:
    about = fields["response_format"].schema["description"]
    rule = said(about, one_of(images_body.B64_JSON), default=images_body.B64_JSON)
    return {**fields, "response_format": rule}


def _named_body(
    model: Served,
    fields: Mapping[str, DescribedRule],
    required: Sequence[str],
    names: Sequence[str],
) -> Json:
    schema = body_schema(model, fields, required)
    about = fields["model"].schema["description"]
    one: Json = {"type": "string", "enum": list(names), "description": about}
    schema["properties"]["model"] = one if "model" in required else or_null(one)
    return schema


def body_schema(
    model: Served, fields: Mapping[str, DescribedRule], required: Sequence[str]
) -> Json:
    """The schema of an OpenAI body for one model: the route's rules, and the model's own ranges
    where its V2 parameters have the same name."""
    schema = object_schema(fields, *required)
    properties = schema["properties"]
    for name, own in model.get_parameters().items():
        if name in properties and ("enum" in own or own["type"] in ("integer", "number")):
            about = fields[name].schema.get("description", "")
            properties[name] = or_null({**own, "description": own.get("description", about)})
    return schema


def _picture_files() -> Json:
    file = path_parameter("file", _STRING, "What the address of the picture ends with.")
    types = ("image/png", "image/jpeg", "image/webp")
    picture = {"description": "The file", "content": {kind: {"schema": {}} for kind in types}}
    fetch: Json = {
        "operationId": "picture_file",
        "summary": "A picture that was answered by address",
        "parameters": [file],
        "responses": {"200": picture, **error_answers("OpenAIError", 404, 410)},
    }
    return {f"/v1{FILES_ROUTE}/{{file}}": {"get": fetch}}


def _openai_listing(names: Mapping[str, Served]) -> Json:
    one = probe_operation("openai_model", "One model", schema_ref("ModelCard"))
    one["parameters"] = [model_parameter(names)]
    one["responses"] |= error_answers("OpenAIError", 404)
    listed = get_operation("openai_models", "The models", schema_ref("ModelCards"))
    return {
        "/v1/models": {"get": listed},
        "/v1/models/{model}": {"get": one},
    }
