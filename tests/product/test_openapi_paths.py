"""Servers of one model and of both: their OpenAPI documents list no operation that they answer
with 404 or 405, and none that their settings turn off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from predictors.settings import Settings
from tests.http.echo import Running
from tests.product.conftest import product_settings, served_models

URL = "http://127.0.0.1:1"  # the base of pictures' addresses; the test asks at the server's own
FILE = "/v1/images/files/{file}"
METHODS = ("get", "post", "delete")
SERVERS = {
    "text alone": (["qwen-vl"], ""),
    "text alone, with an address": (["qwen-vl"], URL),
    "pictures alone": (["flux"], ""),
    "both, with an address": (["flux", "qwen-vl"], URL),
}


@contextmanager
def served(names: Sequence[str], public_url: str) -> Iterator[Running]:
    """A ready server of these models."""
    base = product_settings()
    settings: Settings = replace(base, server=replace(base.server, public_url=public_url))
    with served_models(settings, names) as running:
        yield running


def address_of(http: httpx.Client, path: str, operation: dict[str, Any]) -> str:
    """The path with values that exist."""
    for parameter in operation.get("parameters", []):
        if path == FILE:
            body = {"model": "flux", "prompt": "a", "response_format": "url"}
            answer = http.post("/v1/images/generations", json=body | {"num_inference_steps": 1})
            value = answer.json()["data"][0]["url"].rpartition("/")[2]
        elif parameter["name"] == "file":
            value = "reference.js" if path.startswith("/docs") else "main.js"
        else:
            value = parameter["schema"]["enum"][0]
        path = path.replace(f"{{{parameter['name']}}}", value)
    return path


def body_of(operation: dict[str, Any]) -> Any:
    """The first example of a body, or an empty one."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    examples = content.get("examples") or {"": {"value": {}}}
    return next(iter(examples.values()))["value"]


@pytest.mark.parametrize("kind", SERVERS)
def test_every_operation_of_the_document_is_one_of_this_server(kind: str) -> None:
    with served(*SERVERS[kind]) as running, running.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
        refused = []
        for path, item in paths.items():
            for method in set(METHODS) & item.keys():
                given = address_of(http, path, item[method])
                assert "{" not in given
                options = {} if method == "get" else {"json": body_of(item[method])}
                answer = http.request(method, given, headers={"accept": "*/*"}, **options)
                if answer.status_code in (404, 405):
                    refused.append((method, path))
    assert refused == []
    starts = {re.sub(r"^(/v1/images|/v1/chat|/v1/responses).*", r"\1", path) for path in paths}
    names, public_url = SERVERS[kind]
    assert ("/v1/images" in starts) == ("flux" in names)
    assert ({"/v1/chat", "/v1/responses"} <= starts) == ("qwen-vl" in names)
    assert (FILE in paths) == bool(public_url and "flux" in names)
