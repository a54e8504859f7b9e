"""The OpenAPI document has every route and field, and its examples are answered as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from predictors import __version__
from predictors.operators.page_routes import page_routes
from predictors.protocol.anthropic import messages_body
from predictors.protocol.openai import (
    chat_body,
    completions_body,
    edits_body,
    images_body,
    messages,
    responses_body,
    tokens_body,
)
from predictors.protocol.openai.fields import DescribedRule
from predictors.protocol.openai.picture_files import ROUTE
from predictors.protocol.openai.routes import PREFIXES
from predictors.protocol.openai.text_routes import KEPT_RESPONSES
from predictors.protocol.openapi.document import TAGS, openapi_document
from predictors.settings import Settings
from tests.http.echo import Running

METHODS = ("get", "post", "delete")
PARAMETER = re.compile(r"{([a-z_]+)(?::[a-z]+)?}")
FIELDS = {
    "qwen_vl_chat": chat_body.FIELDS,
    "qwen_vl_responses": responses_body.FIELDS,
    "qwen_vl_completions": completions_body.FIELDS,
    "qwen_vl_messages": messages_body.FIELDS,
    "qwen_vl_count_tokens": messages_body.COUNT_FIELDS,
    "flux_images": images_body.FIELDS,
    "flux_edits": edits_body.FIELDS,
    "qwen_vl_tokenize": tokens_body.TOKENIZE_FIELDS,
    "qwen_vl_detokenize": tokens_body.DETOKENIZE_FIELDS,
}


@pytest.fixture(scope="module")
def http(product: Running) -> Iterator[httpx.Client]:
    with product.client() as client:
        yield client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def described(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Every method and path below every address of a path, with `{}` for parameters and models."""
    found = set()
    for path, method, _ in operations(document):
        general = re.sub(r"^/v2/models/(flux|qwen-vl)", "/v2/models/{}", path)
        for server in document["paths"][path].get("servers", document["servers"]):
            url = server["url"].removeprefix(".") + PARAMETER.sub("{}", general)
            found.add((method, url))
    return found


def test_every_route_that_can_succeed_is_described_and_no_other(
    product: Running, document: dict[str, Any]
) -> None:
    registered = {
        (method.lower(), PARAMETER.sub("{}", route.path))
        for route in product.server._data_routes()
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    # always 404: answers are not kept, and this server gives pictures no addresses
    refused = {
        (method.lower(), prefix + PARAMETER.sub("{}", path))
        for prefix in PREFIXES
        for path, methods in [*KEPT_RESPONSES, (f"{ROUTE}/{{file}}", ["GET"])]
        for method in methods
    }
    assert refused < registered
    assert described(document) == registered - refused


def test_the_playgrounds_routes_are_described_where_they_are_served() -> None:
    served = {route.path for route in page_routes(Settings()) if isinstance(route, Route)}
    assert "/playground" in served
    assert served <= openapi_document({}, has_urls=False, others=served)["paths"].keys()


def test_operations_have_unique_names_that_do_not_depend_on_other_models(
    product: Running, document: dict[str, Any]
) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", each) for each in ids)
    models = dict(reversed(product.server.registry.names.items()))
    turned = openapi_document(models, has_urls=False)
    alone = openapi_document({"flux": models["flux"]}, has_urls=False)
    for other in (turned, alone):
        for path, method, operation in operations(other):
            assert operation["operationId"] == document["paths"][path][method]["operationId"]


def test_the_common_rules_of_linters_hold(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == __version__
    assert {"title", "description", "license"} <= document["info"].keys()
    used = {tag for _, _, operation in operations(document) for tag in operation["tags"]}
    assert used == set(TAGS) == {tag["name"] for tag in document["tags"]}
    for path, method, operation in operations(document):
        where = (path, method)
        assert operation["summary"], where
        assert operation["description"], where
        given = set(PARAMETER.findall(path))
        assert {each["name"] for each in operation.get("parameters", [])} == given, where
        statuses = operation["responses"].keys()
        assert statuses & {"200", "3XX"} or operation["deprecated"], where
        assert "$ref" in str(operation) or operation["tags"][0] in ("Health", "Server"), where
        if operation["tags"] != ["Health"]:
            assert any(each.startswith("4") for each in statuses), where
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name
    for name in set(re.findall(r'"#/components/([^"]+)"', text)):
        kind, _, key = name.partition("/")
        assert key in document["components"][kind], name


def test_every_error_has_its_body_and_overload_says_how_long_to_wait(
    document: dict[str, Any],
) -> None:
    answers = document["components"]["responses"]
    for name, answer in answers.items():
        reference = answer["content"]["application/json"]["schema"]["$ref"]
        assert reference.rpartition("/")[2] == name[:-3]
        assert ("Retry-After" in answer.get("headers", {})) == (name[-3:] in ("429", "503"))
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"].keys()
    expected = {"400", "401", "403", "404", "413", "415", "421", "429", "500", "501", "503", "504"}
    assert chat == expected | {"200"}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_there_with_a_type_and_one_sentence(
    name: str, document: dict[str, Any]
) -> None:
    properties = document["components"]["schemas"][name]["properties"]
    assert properties.keys() == FIELDS[name].keys()
    for field, schema in properties.items():
        about = schema.get("description", "")
        assert about, field
        assert about.endswith((".", "`", "list", "form", "of them")), (field, about)
        kinds = {"type", "anyOf", "oneOf", "enum", "$ref"}
        assert kinds & schema.keys(), field
        if "default" in schema:
            rule: DescribedRule = FIELDS[name][field]
            assert Draft202012Validator(schema).is_valid(schema["default"]), field
            if field not in ("tier", "strength", "max_tokens"):
                rule.check(field, schema["default"])


def test_messages_and_v2_parameters_have_sentences_too(
    document: dict[str, Any], http: httpx.Client
) -> None:
    for field, rule in messages.MESSAGE_FIELDS.items():
        assert rule.schema.get("description"), field
    for model in ("flux", "qwen_vl"):
        schema = document["components"]["schemas"][f"{model}_infer"]
        parameters = schema["properties"]["parameters"]["properties"]
        silent = [name for name, each in parameters.items() if not each.get("description")]
        assert silent == []


def test_the_defaults_of_the_document_change_nothing() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    plain = chat_body.read_chat_body(body)
    for name, rule in chat_body.OWN_FIELDS.items():
        if "default" in rule.schema and name != "coordinates":  # the model's codec has it
            assert chat_body.read_chat_body(body | {name: rule.schema["default"]}) == plain, name
    pictures = {"model": "m", "prompt": "x"}
    read = images_body.read_images_body(pictures)
    for name, rule in images_body.OWN_FIELDS.items():
        if "default" in rule.schema and name != "output_format":  # the model's codec has it
            given = images_body.read_images_body(pictures | {name: rule.schema["default"]})
            assert given == read, name


# -- examples --------------------------------------------------------------------------------------
ROUTES = (
    "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/images/generations",
    "/v1/images/edits", "/tokenize", "/detokenize", "/v2/models/flux/infer",
    "/v2/models/qwen-vl/infer",
)  # fmt: skip
READS = (
    "/", "/v2", "/v2/models", "/v2/models/flux", "/v2/models/qwen-vl", "/v2/health/live",
    "/v2/health/ready", "/v2/models/flux/ready", "/version", "/v2/repository/index", "/v1/models",
)  # fmt: skip


def closed(schema: Any) -> Any:
    """The schema with every object that names its fields closed to others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    components = json.loads(json.dumps(document["components"]))
    components["schemas"] = {
        name: each if name in ("ResponseObject", "ResponseEvent") else closed(each)
        for name, each in components["schemas"].items()
    }
    whole = closed(schema) | {"components": components}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("path", ROUTES)
def test_each_example_is_allowed_and_answered_as_the_document_says(
    path: str, document: dict[str, Any], http: httpx.Client
) -> None:
    post = document["paths"][path]["post"]
    content = post["requestBody"]["content"]["application/json"]
    body = Draft202012Validator(content["schema"] | {"components": document["components"]})
    answers = post["responses"]["200"]["content"]
    assert content["examples"]
    for name, example in content["examples"].items():
        value = example["value"]
        assert list(body.iter_errors(value)) == [], name
        small = {"num_inference_steps": 2} if "/images/" in path else {}
        # a drawn answer may be empty, and a stream of it one event
        likely = {"temperature": 0} if "max_tokens" in value or "max_output_tokens" in value else {}
        answer = http.post(path, json=value | small | likely)
        assert answer.status_code == 200, answer.text
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind == ("text/event-stream" if value.get("stream") else "application/json")
        schema = answers[kind]["schema"]
        if kind == "application/json":
            found = [answer.json()]
        else:
            schema = schema["contentSchema"]
            lines = [x for x in answer.text.splitlines() if x.startswith("data: {")]
            found = [json.loads(line[6:]) for line in lines]
            assert len(found) > 1
        check = validator(document, schema)
        assert [error.message for each in found for error in check.iter_errors(each)] == []


@pytest.mark.parametrize("path", READS)
def test_each_description_is_answered_as_the_document_says(
    path: str, document: dict[str, Any], http: httpx.Client
) -> None:
    content = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    check = validator(document, content["schema"])
    assert [error.message for error in check.iter_errors(http.get(path).json())] == []


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/v1/chat/completions", "OpenAIError"), ("/v2/models/flux/infer", "V2Error")],
)
def test_a_failure_has_the_body_of_the_document(
    path: str, schema: str, document: dict[str, Any], http: httpx.Client
) -> None:
    answer = http.post(path, json={"colour": "red"})
    reference = document["paths"][path]["post"]["responses"][str(answer.status_code)]["$ref"]
    assert reference == f"#/components/responses/{schema}{answer.status_code}"
    check = validator(document, {"$ref": f"#/components/schemas/{schema}"})
    assert list(check.iter_errors(answer.json())) == []
