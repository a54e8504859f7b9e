"""The V2 routes of the OpenAPI document, from the models' own tables of inputs and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from predictors.protocol.call import DEFAULT_LEVEL, MAX_LEVEL
from predictors.protocol.openai import chat_body, edits_body
from predictors.protocol.openai.film_fields import FRAME_FIELDS
from predictors.protocol.openapi.examples import infer_examples
from predictors.protocol.openapi.parts import (
    JSON_TYPE,
    Json,
    complete_object,
    empty_probe,
    error_answers,
    get_operation,
    json_content,
    path_parameter,
    probe_operation,
    schema_ref,
)
from predictors.protocol.serves import Served, ServesChat
from predictors.protocol.v2.content_types import REQUEST
from predictors.protocol.v2.tensors import DATATYPES, MAX_ELEMENTS
from predictors.protocol.v2.values import INTEGERS, VERSION
from predictors.protocol.v2.wire_json import (
    INPUT_PARAMETERS,
    MAX_ID,
    MAX_TENSORS,
    OUTPUT_PARAMETERS,
)

_SCALARS = ["string", "number", "boolean"]
_STRING: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_NAMES: Json = {"type": "array", "items": _STRING}
_WARMING: Json = {
    "type": "string",
    "description": "n/m: n of m promised shapes are warm. Absent once all are.",
}
_NOT_READY: Json = {
    "type": "string",
    "description": "Why nothing is ready until the operator acts. Absent otherwise.",
}
_PARAMETERS: Json = {"type": "object", "additionalProperties": {"type": _SCALARS}}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": sorted(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array", "maxItems": MAX_ELEMENTS, "items": {}},
        "parameters": _PARAMETERS,
    },
}
_TENSOR_TYPE = complete_object(
    {"name": _STRING, "datatype": _STRING, "shape": {"type": "array", "items": {"type": "integer"}}}
)
_METADATA = complete_object(
    {
        "name": _STRING,
        "versions": _NAMES,
        "platform": _STRING,
        "inputs": {"type": "array", "items": _TENSOR_TYPE},
        "outputs": {"type": "array", "items": _TENSOR_TYPE},
    }
)
_METADATA["properties"] |= {
    "parameters": {
        "type": "object",
        "description": "The V2 parameters, each as JSON Schema.",
        "additionalProperties": {"type": "object"},
    },
    "limits": {"type": "object", "description": "Sizes, tiers and other limits."},
    "warming": _WARMING,
}
_STATE = complete_object(
    {
        "name": _STRING,
        "version": {"type": "string"},
        "state": {"type": "string", "enum": ["READY", "UNAVAILABLE"]},
        "reason": _STRING,
    }
)
_ANSWER = complete_object(
    {
        "model_name": _STRING,
        "model_version": {"type": "string", "enum": [VERSION]},
        "id": _STRING,
        "outputs": {"type": "array", "items": schema_ref("Tensor")},
    }
)
_ANSWER["properties"]["parameters"] = _PARAMETERS
_READY = complete_object({"name": _STRING, "ready": _FLAG})
_READY["properties"] |= {"warming": _WARMING, "reason": _NOT_READY}
V2_SCHEMAS: Json = {
    "InferAnswer": _ANSWER,
    "V2Error": complete_object({"error": _STRING}),
    "Tensor": _TENSOR,
    "ModelMetadata": _METADATA,
    "ModelStates": {"type": "array", "items": _STATE},
    "ModelReady": _READY,
}
_VERSION = path_parameter("version", {"type": "string", "enum": [VERSION]}, "The only version.")


def server_paths(names: Mapping[str, Served]) -> Json:
    """Routes that concern no single model."""
    server = complete_object({"name": _STRING, "version": _STRING, "extensions": _NAMES})
    live, ready = complete_object({"live": _FLAG}), complete_object({"ready": _FLAG})
    ready["properties"] |= {"warming": _WARMING, "reason": _NOT_READY}
    about = "Name, version and extensions of the server"
    listed = complete_object({"models": _NAMES})
    version = complete_object({"version": _STRING})
    return {
        "/": {"get": get_operation("alive", "The process answers", _alive())},
        "/v2": {"get": get_operation("server_metadata", about, server)},
        "/v2/models": {"get": get_operation("model_names", "Names of the models", listed)},
        "/v2/health/live": {
            "get": probe_operation("server_live", "The process need not be restarted", live)
        },
        "/v2/health/ready": {"get": probe_operation("server_ready", "Every model is warm", ready)},
        "/health": {"get": empty_probe("health", "Every model is warm")},
        "/version": {"get": get_operation("version", "Version of the server", version)},
        "/v2/repository/index": _repository_index(),
        **_repository(names),
        **_v1(names),
    }


def _alive() -> Json:
    return complete_object({"status": {"const": "alive"}})


def _repository_index() -> Json:
    states = schema_ref("ModelStates")
    about = "The models and their states"
    answer = get_operation("repository_index", about, states)
    post = get_operation("repository_index_of", f"{about}, `ready` ones alone if true", states)
    ready = {"type": "object", "properties": {"ready": {"type": "boolean", "default": False}}}
    post["requestBody"] = json_content(ready | {"additionalProperties": False})
    post["responses"] |= error_answers("V2Error")
    return {"get": answer, "post": post}


def _repository(names: Mapping[str, Served]) -> Json:
    """`load` and `unload`, which answer 501 unless the operator has turned them on."""
    found: Json = {}
    for verb, about in (("load", "Put a model back"), ("unload", "Take a model out of service")):
        answer = complete_object({"name": _STRING, verb: _FLAG})
        post = get_operation(f"repository_{verb}", about, answer)
        post["responses"] |= error_answers("V2Error", 404, 501)
        post["parameters"] = [model_parameter(names)]
        found[f"/v2/repository/models/{{model}}/{verb}"] = {"post": post}
    return found


def _v1(names: Mapping[str, Served]) -> Json:
    """KServe's V1, which is refused."""
    found: Json = {}
    for verb in ("predict", "explain"):
        found[f"/v1/models/{{model}}:{verb}"] = {
            "post": {
                "operationId": f"v1_{verb}",
                "summary": "KServe V1, which is not offered: use V2",
                "deprecated": True,
                "parameters": [model_parameter(names)],
                "responses": error_answers("V2Error", 404, 501),
            }
        }
    return found


def model_parameter(names: Iterable[str]) -> Json:
    return path_parameter("model", {"type": "string", "enum": list(names)}, "Name of a model.")


def model_paths(model: Served, in_path: str, name: str, schemas: Json) -> Json:
    """The routes of one model. `name` stands for it in identifiers; adds to `schemas`."""
    schemas[f"{name}_infer"] = infer_schema(model)
    path = f"/v2/models/{quote(in_path)}"
    found: Json = {}
    for rest, more, parameters in (("", "", []), ("/versions/{version}", "_version", [_VERSION])):
        infer: Json = {
            "operationId": f"infer_{name}{more}",
            "summary": f"V2 inference with {model.name}",
            "requestBody": json_content(schema_ref(f"{name}_infer"), required=True),
            "responses": {
                "200": {"description": "The outputs"} | json_content(schema_ref("InferAnswer")),
                **error_answers("V2Error"),
            },
        }
        infer["requestBody"]["content"][JSON_TYPE]["examples"] = infer_examples(model)
        about = f"Inputs, outputs, parameters and limits of {model.name}"
        metadata = get_operation(f"metadata_{name}{more}", about, schema_ref("ModelMetadata"))
        if limits := model.get_limits():
            metadata["x-limits"] = limits
        ready = probe_operation(
            f"ready_{name}{more}", f"{model.name} is warm", schema_ref("ModelReady")
        )
        for operation in (infer, metadata, ready) if parameters else ():
            operation["parameters"] = parameters
            operation["responses"] |= error_answers("V2Error", 404)
        found[f"{path}{rest}/infer"] = {"post": infer}
        found[f"{path}{rest}"] = {"get": metadata}
        found[f"{path}{rest}/ready"] = {"get": ready}
    return found


_TIMEOUT = "Microseconds that the request may take; 0 is no limit."


def _sentences(model: Served) -> Mapping[str, str]:
    """Descriptions of the fields that V2's parameters share with OpenAI's bodies."""
    of_chat = {**chat_body.OWN_FIELDS, **FRAME_FIELDS}
    fields = of_chat if isinstance(model, ServesChat) else edits_body.OWN_FIELDS
    found = {name: rule.schema.get("description", "") for name, rule in fields.items()}
    return {name: about for name, about in found.items() if about}


def _parameter(name: str, own: Mapping[str, Any], about: Mapping[str, str]) -> Json:
    return (
        dict(own)
        if "description" in own or name not in about
        else {**own, "description": about[name]}
    )


def infer_schema(model: Served) -> Json:
    """The schema of a V2 request in JSON."""
    sentences = _sentences(model)
    own = model.get_parameters().items()
    parameters: Json = {name: _parameter(name, each, sentences) for name, each in own}
    parameters["timeout"] = {
        "type": "number",
        "minimum": 0,
        "description": "Microseconds that the request may take.",
    }
    level = {"type": "integer", "minimum": 0, "maximum": MAX_LEVEL}
    about = f"Among the caller's own requests: 1 goes first, 0 is the default ({DEFAULT_LEVEL})."
    parameters["priority"] = {**level, "description": about}
    raw = "Outputs come as bytes behind the JSON."
    parameters["binary_data_output"] = {"type": "boolean", "default": False, "description": raw}
    sent = "MLServer's word for the inputs, which changes nothing."
    parameters["content_type"] = {"enum": sorted(REQUEST), "description": sent}
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
            "model_name": {"type": ["string", "null"], "description": "The name in the path."},
            "model_version": {"enum": [VERSION, "", None]},
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
