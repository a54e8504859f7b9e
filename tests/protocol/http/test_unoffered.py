"""The reasons why routes of OpenAI's API are not there."""

from __future__ import annotations

import pytest

from predictors.protocol.http.unoffered import REASONS, reason_of


@pytest.mark.parametrize("name", REASONS)
def test_a_route_that_clients_look_for_has_its_reason(name: str) -> None:
    for path in (f"/v1/{name}", f"/v1/{name}/more", f"/openai/v1/{name}"):
        assert reason_of(path) == f": {REASONS[name]}"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/files", "/v2/files", "/v1/filesystem"])
def test_any_other_path_has_none(path: str) -> None:
    assert reason_of(path) == ""
