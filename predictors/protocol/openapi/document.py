"""`GET /openapi.json`: the routes as OpenAPI 3.1, written from the tables that check requests.

Fields, ranges and defaults are those of the models that are served. The document is made in a
thread and kept until a model or one of its limits changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from predictors import __version__
from predictors.protocol.call import DEFAULT_LEVEL, MAX_LEVEL
from predictors.protocol.openapi.openai import openai_paths
from predictors.protocol.openapi.parts import (
    Json,
    complete_object,
    component_name,
    empty_probe,
    error_answers,
    get_operation,
    json_content,
    probe_operation,
    schema_ref,
)
from predictors.protocol.registry import VERSION
from predictors.protocol.serves import Served
from predictors.protocol.v2.content_types import REQUEST
from predictors.protocol.v2.tensors import DATATYPES, MAX_ELEMENTS
from predictors.protocol.v2.values import INTEGERS
from predictors.protocol.v2.wire_json import (
    INPUT_PARAMETERS,
    MAX_ID,
    MAX_TENSORS,
    OUTPUT_PARAMETERS,
)

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


def openapi_document(names: Mapping[str, Served], *, has_urls: bool) -> Json:
    """OpenAPI 3.1 of all routes that serve these models, V2's under the first name of a model.
    `has_urls`: pictures may be asked for by address."""
    first = {model.name: name for name, model in reversed(list(names.items()))}
    models = list(dict.fromkeys(names.values()))
    schemas: Json = {
        "V2Error": complete_object({"error": _STRING}),
        "OpenAIError": complete_object({"error": complete_object(_ERROR)}),
        "Tensor": _TENSOR,
    }
    paths: Json = _health()
    for index, model in enumerate(models):
        paths |= _v2_paths(model, first[model.name], index, schemas)
    paths |= openai_paths(names, schemas, has_urls=has_urls)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vision Predictors", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas},
    }


# -- V2 --------------------------------------------------------------------------------------------
def _health() -> Json:
    return {
        "/v2": {
            "get": get_operation("server_metadata", "Name, version and extensions of the server")
        },
        "/v2/models": {"get": get_operation("model_names", "Names of the models")},
        "/v2/health/live": {
            "get": probe_operation("server_live", "The process need not be restarted")
        },
        "/v2/health/ready": {"get": probe_operation("server_ready", "Every model is warm")},
        "/health": {"get": empty_probe("health", "Every model is warm")},
        "/version": {"get": get_operation("version", "Version of the server")},
        "/v2/repository/index": _repository_index(),
    }


def _repository_index() -> Json:
    answer = get_operation("repository_index", "The models and their states")
    post = get_operation(
        "repository_index_of", "The models and their states, `ready` ones alone if true"
    )
    ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    post["requestBody"] = json_content(ready | {"additionalProperties": False})
    post["responses"] |= error_answers("V2Error")
    return {"get": answer, "post": post}


def _v2_paths(model: Served, in_path: str, index: int, schemas: Json) -> Json:
    name = f"{component_name(model.name)}_{index}"
    schemas[f"{name}_infer"] = infer_schema(model)
    path = f"/v2/models/{quote(in_path)}"
    infer = {
        "operationId": f"infer_{name}",
        "summary": f"V2 inference with {model.name}",
        "requestBody": json_content(schema_ref(f"{name}_infer"), required=True),
        "responses": {
            "200": {"description": "The outputs", **json_content(_infer_answer(model))},
            **error_answers("V2Error"),
        },
    }
    metadata = get_operation(
        f"metadata_{name}", f"Inputs, outputs, parameters and limits of {model.name}"
    )
    if limits := model.get_limits():
        metadata["x-limits"] = limits
    return {
        f"{path}/infer": {"post": infer},
        path: {"get": metadata},
        f"{path}/ready": {"get": probe_operation(f"ready_{name}", f"{model.name} is warm")},
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
            "outputs": {"type": "array", "items": schema_ref("Tensor")},
            "parameters": {"type": "object", "additionalProperties": {"type": _SCALARS}},
        },
    }
