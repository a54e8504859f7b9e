"""API keys in the OpenAPI document: which operations need one, and the answers without."""

from __future__ import annotations

from predictors.protocol.error_formats import error_format
from predictors.protocol.http.access import needs_key
from predictors.protocol.openapi.parts import Json, error_answers

MAX_PAGES = 16
"""Documents that are kept: keys for different models see different ones."""
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def with_keys(document: Json) -> Json:
    """The document, which is changed: every operation but those that are open needs a key."""
    document["components"]["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for path, item in document["paths"].items():
        schema = error_format(path).schema
        for operation in (each for each in item.values() if isinstance(each, dict)):
            if needs_key(path):
                answers = error_answers(schema, 401, 403)
                operation["responses"] = answers | operation["responses"]
            else:
                operation["security"] = []
    return document
