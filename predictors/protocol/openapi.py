"""`GET /openapi.json`: the routes as OpenAPI 3.1, written from the tables that check requests.

Fields, ranges and defaults are those of the models that are served. The document is made in a
thread and kept until a model or one of its limits changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors import __version__
from predictors.protocol.call import DEFAULT_LEVEL, MAX_LEVEL
from predictors.protocol.faults import RENDERINGS
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.exchange import CALL_KEY, Response
from predictors.protocol.openai import chat_body, images_body
from predictors.protocol.openai.fields import DescribedRule, object_schema, one_of, or_null
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openapi_keys import MAX_PAGES, with_keys
from predictors.protocol.registry import VERSION, Registry
from predictors.protocol.serves import Served, ServesChat, ServesImages
from predictors.protocol.v2.content_types import REQUEST
from predictors.protocol.v2.tensors import DATATYPES, MAX_ELEMENTS
from predictors.protocol.v2.values import INTEGERS
from predictors.protocol.v2.wire_json import (
    INPUT_PARAMETERS,
    MAX_ID,
    MAX_TENSORS,
    OUTPUT_PARAMETERS,
)

Json = dict[str, Any]

_JSON = "application/json"
_STRING: Json = {"type": "string"}
_OPTIONAL: Json = {"type": ["string", "null"]}
_SCALARS = ["string", "number", "boolean"]
_DESCRIPTION = (
    "V2 inference over REST and the OpenAI API. What is under /v1 is under /openai/v1 as well. "
    "V2 parameters may come as numeric strings. A field that is not in a schema is refused."
)
_ERROR = {"message": _STRING, "type": _STRING, "param": _OPTIONAL, "code": _OPTIONAL}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": sorted(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array", "maxItems": MAX_ELEMENTS},
        "parameters": {"type": "object", "additionalProperties": {"type": _SCALARS}},
    },
}


def openapi_routes(registry: Registry) -> list[BaseRoute]:
    page = OpenApiPage(registry)
    return [Route("/openapi.json", PlainEndpoint(page.answer), methods=["GET"])]


class OpenApiPage:
    """The document as bytes, per set of models that a caller may use. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._has_urls = bool(registry.settings.server.public_url)
        self._pages: dict[tuple[str, ...], tuple[object, bytes]] = {}

    async def answer(self, request: Request) -> Response:
        models = self._registry.names_for(request.scope[CALL_KEY])
        made_of = [(n, dict(x.get_parameters()), dict(x.get_limits())) for n, x in models.items()]
        known = self._pages.get(tuple(models))
        if known is None or known[0] != made_of:
            keyed = self._registry.callers.keys is not None
            body = await self._registry.in_thread(_encoded, models, self._has_urls, keyed)
            if len(self._pages) >= MAX_PAGES:
                self._pages.clear()
            known = self._pages[tuple(models)] = made_of, body
        return Response(known[1])


def _encoded(models: Mapping[str, Served], has_urls: bool, has_keys: bool) -> bytes:
    document = openapi_document(models, has_urls=has_urls)
    return orjson.dumps(with_keys(document) if has_keys else document)


def openapi_document(names: Mapping[str, Served], *, has_urls: bool) -> Json:
    """OpenAPI 3.1 of all routes that serve these models, V2's under a model's own name, not its
    aliases. `has_urls`: pictures may be asked for by address."""
    models = [model for name, model in names.items() if name == model.name]
    schemas: Json = {
        "V2Error": _complete({"error": _STRING}),
        "OpenAIError": _complete({"error": _complete(_ERROR)}),
        "Tensor": _TENSOR,
    }
    paths: Json = {**_health(), **_openai_listing(names)}
    for index, model in enumerate(models):
        paths |= _v2_paths(model, index, schemas)
    for route, kind, fields, required in (
        ("/chat/completions", ServesChat, chat_body.FIELDS, ("model", "messages")),
        ("/images/generations", ServesImages, _image_fields(has_urls), ("model", "prompt")),
    ):
        served = [model for model in models if isinstance(model, kind)]
        if served:
            name = route.split("/")[1]
            body = _openai_body(served, names, name, fields, required, schemas)
            paths[f"/v1{route}"] = {"post": _openai_post(name, body)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vision Predictors", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas},
    }


# -- V2 --------------------------------------------------------------------------------------------
def _health() -> Json:
    return {
        "/v2": {"get": _get("server_metadata", "Name, version and extensions of the server")},
        "/v2/models": {"get": _get("model_names", "Names of the models")},
        "/v2/health/live": {"get": _probe("server_live", "The process need not be restarted")},
        "/v2/health/ready": {"get": _probe("server_ready", "Every model is warm")},
        "/v2/repository/index": _repository_index(),
    }


def _repository_index() -> Json:
    answer = _get("repository_index", "The models and their states")
    post = _get("repository_index_of", "The models and their states, `ready` ones alone if true")
    ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    post["requestBody"] = _content(ready | {"additionalProperties": False})
    post["responses"] |= _errors("V2Error")
    return {"get": answer, "post": post}


def _v2_paths(model: Served, index: int, schemas: Json) -> Json:
    name = f"{_component(model.name)}_{index}"
    schemas[f"{name}_infer"] = infer_schema(model)
    path = f"/v2/models/{quote(model.name)}"
    infer = {
        "operationId": f"infer_{name}",
        "summary": f"V2 inference with {model.name}",
        "requestBody": _content(_ref(f"{name}_infer"), required=True),
        "responses": {
            "200": {"description": "The outputs", **_content(_infer_answer(model))},
            **_errors("V2Error"),
        },
    }
    metadata = _get(f"metadata_{name}", f"Inputs, outputs, parameters and limits of {model.name}")
    if limits := model.get_limits():
        metadata["x-limits"] = limits
    return {
        f"{path}/infer": {"post": infer},
        path: {"get": metadata},
        f"{path}/ready": {"get": _probe(f"ready_{name}", f"{model.name} is warm")},
    }


def infer_schema(model: Served) -> Json:
    """The schema of a V2 request in JSON."""
    parameters: Json = {name: dict(each) for name, each in model.get_parameters().items()}
    parameters["timeout"] = {"type": "number", "minimum": 0, "description": "Microseconds."}
    level = {"type": "integer", "minimum": 0, "maximum": MAX_LEVEL}
    about = f"Among the caller's own requests: 1 goes first, 0 is the default ({DEFAULT_LEVEL})."
    parameters["priority"] = {**level, "description": about}
    parameters["binary_data_output"] = {"type": "boolean"}
    parameters["content_type"] = {"enum": sorted(REQUEST)}
    inputs = [_input(entry) for entry in model.get_input_types()]
    names = [output["name"] for output in model.get_output_types()]
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": names}, "parameters": _optional(OUTPUT_PARAMETERS)},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"], "maxLength": MAX_ID},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": {
                "type": ["object", "null"],
                "properties": parameters,
                "additionalProperties": not model.get_parameters(),
            },
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_TENSORS,
                "items": {"oneOf": inputs},
            },
            "outputs": {"type": ["array", "null"], "maxItems": MAX_TENSORS, "items": output},
        },
        "additionalProperties": False,
    }


def _input(entry: Mapping[str, Any]) -> Json:
    is_text = entry["datatype"] == "BYTES"
    properties = {
        **_TENSOR["properties"],
        "name": {"const": entry["name"]},
        "datatype": {"const": "BYTES"} if is_text else {"enum": sorted(INTEGERS)},
        "parameters": _optional(INPUT_PARAMETERS),
    }
    return {**_TENSOR, "properties": properties, "additionalProperties": False}


def _optional(names: Iterable[str]) -> Json:
    fields = {name: {"type": [*_SCALARS, "null"]} for name in sorted(names)}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def _infer_answer(model: Served) -> Json:
    return {
        "type": "object",
        "required": ["model_name", "model_version", "id", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"const": VERSION},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _ref("Tensor")},
            "parameters": {"type": "object", "additionalProperties": {"type": _SCALARS}},
        },
    }


# -- OpenAI ----------------------------------------------------------------------------------------
def _image_fields(has_urls: bool) -> Mapping[str, DescribedRule]:
    if has_urls:
        return images_body.FIELDS
    return {**images_body.FIELDS, "response_format": one_of(images_body.B64_JSON)}


def _openai_body(
    models: Sequence[Served],
    names: Mapping[str, Served],
    route: str,
    fields: Mapping[str, DescribedRule],
    required: Sequence[str],
    schemas: Json,
) -> Json:
    refs = []
    for index, model in enumerate(models):
        name = f"{_component(model.name)}_{index}_{route}"
        schemas[name] = body_schema(model, fields, required)
        own = [each for each, served in names.items() if served is model]
        schemas[name]["properties"]["model"] = {"type": "string", "enum": own}
        refs.append(_ref(name))
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
    answers = _content({"type": "object"})
    answers["content"]["text/event-stream"] = {}
    return {
        "operationId": f"openai_{name}",
        "summary": f"OpenAI {name}",
        "requestBody": _content(body, required=True),
        "responses": {"200": {"description": "The answer", **answers}, **_errors("OpenAIError")},
    }


def _openai_listing(names: Mapping[str, Served]) -> Json:
    model = _in_path("model", {"type": "string", "enum": list(names)})
    file = _in_path("file", {"type": "string"})
    picture = {"description": "The file", "content": {"image/*": {}}}
    error = _content(_ref("OpenAIError"))
    missing = {"description": "There is none of this name", **error}
    gone = {"description": "The address has expired", **error}
    fetch = _get("picture_file", "A picture that was answered by address") | {"parameters": [file]}
    fetch["responses"] = {"200": picture, "404": missing, "410": gone}
    one = {**_probe("openai_model", "One model"), "parameters": [model]}
    one["responses"]["404"] = missing
    return {
        "/v1/models": {"get": _get("openai_models", "The models")},
        "/v1/models/{model}": {"get": one},
        f"/v1{FILES_ROUTE}/{{file}}": {"get": fetch},
    }


# -- parts -----------------------------------------------------------------------------------------
def _get(operation: str, summary: str) -> Json:
    answer = {"description": summary, **_content({})}
    return {"operationId": operation, "summary": summary, "responses": {"200": answer}}


def _probe(operation: str, summary: str) -> Json:
    found = _get(operation, summary)
    found["responses"]["503"] = {"description": "Not so", **_content({})}
    return found


def _errors(schema: str) -> Json:
    by_status: dict[int, list[str]] = {}
    for rendering in RENDERINGS.values():
        if rendering.status not in (410, 499):  # of pictures' addresses; of callers who left
            code = rendering.code or rendering.type
            by_status.setdefault(rendering.status, []).append(code)
    by_status[429].append("server_overloaded, where the operator prefers it to 503")
    return {
        str(status): {"description": ", ".join(codes), **_content(_ref(schema))}
        for status, codes in sorted(by_status.items())
    }


def _complete(fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}


def _in_path(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _content(schema: Json, *, required: bool = False) -> Json:
    found: Json = {"content": {_JSON: {"schema": schema}}}
    return {**found, "required": True} if required else found


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _component(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name[:64])
