"""The protocol that a path belongs to, and with it the form of the errors that are answered there
before a route has the request: for keys, origins, methods and paths that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from predictors.protocol.faults import Fault
from predictors.protocol.names import V1_ACTIONS

OPENAI_PREFIXES = (
    "/v1/", "/openai/", "/tokenize", "/detokenize",
    "/chat/", "/completions", "/responses", "/images/", "/embeddings",  # a base without /v1
)  # fmt: skip
ANTHROPIC_PATH = "/v1/messages"


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """`protocol` is the metric label, `schema` the component of the OpenAPI document, `body_of`
    makes the body of a failure."""

    protocol: str
    schema: str
    body_of: Callable[[Fault], bytes]


V2_ERRORS = ErrorFormat("v2_rest", "V2Error", Fault.v2_body)
OPENAI_ERRORS = ErrorFormat("openai", "OpenAIError", Fault.openai_body)
ANTHROPIC_ERRORS = ErrorFormat("anthropic", "AnthropicError", Fault.anthropic_body)
ERROR_FORMATS = (V2_ERRORS, OPENAI_ERRORS, ANTHROPIC_ERRORS)


def error_format(path: str) -> ErrorFormat:
    if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/"):
        return ANTHROPIC_ERRORS
    if path.startswith(OPENAI_PREFIXES) and not path.endswith(V1_ACTIONS):
        return OPENAI_ERRORS
    return V2_ERRORS
