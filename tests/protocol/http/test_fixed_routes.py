"""Routes whose paths have no parameters, which are found without comparing patterns."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.routing import Route

from predictors.protocol.http.app import PlainEndpoint, RestApp
from predictors.protocol.http.responses import Response


def route(path: str, answer: str, method: str) -> Route:
    async def answered(request: Request) -> Response:
        return Response(f"{answer} {sorted(request.path_params)}".encode())

    return Route(path, PlainEndpoint(answered), methods=[method])


ROUTES = [
    route("/models/{name}", "pattern", "GET"),
    route("/models/own", "hidden", "GET"),
    route("/models/own", "own", "POST"),
    route("/models/own", "second", "POST"),
    route("/list", "list", "GET"),
]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/models/own", 200, "pattern ['name']"),
        ("POST", "/models/own", 200, "own []"),
        ("GET", "/list", 200, "list []"),
        ("HEAD", "/list", 200, ""),
        ("GET", "/list/", 200, "list []"),
        ("POST", "/list", 405, "POST is not allowed on '/list'"),
        ("GET", "/lists", 404, "there is no route"),
    ],
)
async def test_a_request_gets_the_first_route_that_takes_its_path_and_method(
    method: str, path: str, status: int, text: str
) -> None:
    transport = httpx.ASGITransport(app=RestApp(ROUTES, access_log=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        found = await client.request(method, path)
    assert found.status_code == status
    assert text in found.text
