"""Which form the errors of a path have, and that each is what its protocol's clients read."""

from __future__ import annotations

import json

import pytest

from predictors.errors import Unauthorized
from predictors.protocol.error_formats import error_format
from predictors.protocol.faults import fault_of

PATHS = {
    "/v2/models/flux/infer": "v2_rest",
    "/v1/models/flux:predict": "v2_rest",
    "/": "v2_rest",
    "/x/v1/messages": "v2_rest",
    "/v1/chat/completions": "openai",
    "/openai/v1/messages": "openai",
    "/tokenize": "openai",
    "/v1/messagesx": "openai",
    "/v1/messages": "anthropic",
    "/v1/messages/": "anthropic",
    "/v1/messages/count_tokens": "anthropic",
    "/v1/messages/batches/x": "anthropic",
}


@pytest.mark.parametrize(("path", "protocol"), PATHS.items())
def test_a_path_has_the_errors_of_its_protocol(path: str, protocol: str) -> None:
    found = error_format(path)
    assert found.protocol == protocol
    body = json.loads(found.body_of(fault_of(Unauthorized("who?"))))
    if protocol == "v2_rest":
        assert body == {"error": "who?"}
    elif protocol == "openai":
        assert body["error"]["code"] == "invalid_api_key"
    else:
        error = {"type": "authentication_error", "message": "who?"}
        assert body == {"type": "error", "error": error}
