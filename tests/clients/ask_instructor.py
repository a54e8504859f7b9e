"""Instructor: a model filled by a tool's call and by a JSON schema, whole and in parts."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from pydantic import BaseModel

from tests.clients import report
from tests.clients.shapes import Shape

client = openai.OpenAI(base_url=report.base_url(), api_key=report.KEY, timeout=report.TIMEOUT_S)


class Seen(BaseModel):
    """A shape in a picture."""

    shape: Shape
    filled: bool


def filled(mode: instructor.Mode) -> Any:
    found = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=report.MODEL,
        messages=report.messages(),
        response_model=Seen,
        max_retries=0,
        max_tokens=report.CALL_TOKENS,
        temperature=0,
        seed=1,
    )
    return found.model_dump()


def parts() -> Any:
    made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    found = made.chat.completions.create_partial(
        model=report.MODEL,
        messages=report.messages(),
        response_model=Seen,
        max_retries=0,
        max_tokens=report.CALL_TOKENS,
        temperature=0,
        seed=1,
    )
    return [part.model_dump() for part in found][-1]


if __name__ == "__main__":
    report.run(
        {
            "tools": lambda: filled(instructor.Mode.TOOLS),
            "json_schema": lambda: filled(instructor.Mode.JSON_SCHEMA),
            "parts": parts,
        }
    )
