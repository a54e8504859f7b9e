"""The hints beside a route that is not there."""

from __future__ import annotations

import pytest

from predictors.protocol.http.unoffered import (
    ELSEWHERE,
    MOST_CHARACTERS,
    REASONS,
    meant_route,
    reason_of,
)


@pytest.mark.parametrize("name", REASONS)
def test_a_route_that_clients_look_for_has_its_reason(name: str) -> None:
    for path in (f"/v1/{name}", f"/v1/{name}/more", f"/openai/v1/{name}"):
        assert reason_of(path) == f": {REASONS[name]}"


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/files", "/v1/filesystem", "/api/chats"])
def test_any_other_path_has_none(path: str) -> None:
    assert reason_of(path) == ""


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_route_of_another_server_is_answered_with_ours(path: str) -> None:
    for spelling in (path, f"{path}/"):
        assert reason_of(spelling) == f": {ELSEWHERE[path]}"
        assert "/" in ELSEWHERE[path] or "no served model" in ELSEWHERE[path]


SERVED = ("/v1/chat/completions", "/v1/images/generations", "/v2/health/ready", "/docs", "/metrics")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/images/generation", "/v1/images/generations"),
        ("/v1/metrics", "/metrics"),
        ("/readyz", "/v2/health/ready"),
        ("/redoc", "/docs"),
    ],
)
def test_the_route_that_a_client_came_near_to_is_named(path: str, meant: str) -> None:
    assert meant_route(path, SERVED) == f"; did you mean {meant}?"


@pytest.mark.parametrize(
    "path", ["/", "", "//", "/predict", "/livez", "/chat", "/v1" * MOST_CHARACTERS + SERVED[0]]
)
def test_no_route_is_guessed_for_any_other_path(path: str) -> None:
    assert meant_route(path, SERVED) == ""
