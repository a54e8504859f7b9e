"""API keys in the OpenAPI document: which operations need one, and the answers without."""

from __future__ import annotations

from typing import Any

from predictors.protocol.http.access import needs_key

MAX_PAGES = 16
"""Documents that are kept: keys for different models see different ones."""
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
REFUSALS = {
    "401": "The API key is missing, unknown or expired",
    "403": "The API key may not use the model",
}


def with_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document, which is changed: every operation but those that are open needs a key."""
    document["components"]["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for path, operations in document["paths"].items():
        is_openai = path.startswith(("/v1/", "/tokenize", "/detokenize"))
        schema = {"$ref": f"#/components/schemas/{'OpenAIError' if is_openai else 'V2Error'}"}
        for operation in operations.values():
            if not needs_key(path):
                operation["security"] = []
                continue
            for status, about in REFUSALS.items():
                content = {"application/json": {"schema": schema}}
                operation["responses"].setdefault(
                    status, {"description": about, "content": content}
                )
    return document
