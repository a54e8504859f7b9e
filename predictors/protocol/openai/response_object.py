"""The object that `POST /v1/responses` answers with, and how a stream of its events fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.openai.events import named_event
from predictors.protocol.openai.responses_body import ResponsesBody

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"
"""Values of `status` of a response and of its items."""


def response_object(
    body: ResponsesBody,
    call: Call,
    status: str,
    output: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A `response`. `more` replaces fields and adds ours."""
    return {
        "id": f"resp_{call.request_id}",
        "object": "response",
        "created_at": body.created_at,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": body.model,
        "output": list(output),
        "temperature": body.chat.temperature,
        "top_p": body.chat.top_p,
        "usage": None,
        **body.shown,
        **more,
    }


def failure_events(body: ResponsesBody, call: Call, fault: Fault, first: int) -> bytes:
    """The last events of a stream that failed; `first` is the sequence number of the next event.

    `error` comes as well: OpenAI's clients raise it, while they take `response.failed` for an
    answer.
    """
    error = {"code": fault.code or fault.type, "message": fault.message}
    failed = response_object(body, call, FAILED, error=error)
    inner = {**error, "type": fault.type, "param": fault.param}
    return numbered_event("response.failed", first, {"response": failed}) + numbered_event(
        "error", first + 1, {**error, "param": fault.param, "error": inner}
    )


def numbered_event(kind: str, number: int, fields: Mapping[str, Any]) -> bytes:
    return named_event(kind, {"type": kind, "sequence_number": number, **fields})
