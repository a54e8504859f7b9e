"""The fields of a chat body that concern the chat template: its own variables, and where the
rendered conversation ends.

A model's codec holds the variables against those that its template reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.fields import MAX_NAME, DescribedRule, described, flag, said, wrong
from predictors.protocol.openai.json_texts import parse_json_text

MAX_VARIABLES = 16
MAX_TEXT = 16_384  # characters of all variables as JSON
MAX_NUMBER = 1_000_000  # templates may repeat a text as often as a number says


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class TemplateFields:
    """Checked fields that concern the chat template."""

    chat_template_kwargs: str = "{}"
    """A JSON object with its names in order."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


AS_USUAL = TemplateFields()


@described(
    {
        "type": "object",
        "maxProperties": MAX_VARIABLES,
        "description": "Variables that the model's chat template reads.",
    }
)
def template_variables(name: str, value: Any) -> str:
    """An object's JSON, with its names in order."""
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    if len(value) > MAX_VARIABLES:
        message = f"{name} has {len(value)} names; at most {MAX_VARIABLES} are taken"
        raise InvalidRequest(message, param=name)
    for key, each in value.items():
        _check_numbers(f"{name}.{key[:MAX_NAME]}", each)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if len(text) > MAX_TEXT:
        message = f"{name} has {len(text)} characters as JSON; at most {MAX_TEXT} are taken"
        raise InvalidRequest(message, param=name)
    return text


def _check_numbers(name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_numbers(name, each)
    elif isinstance(value, int | float) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise wrong(name, f"numbers from -{MAX_NUMBER} to {MAX_NUMBER}", value)


TEMPLATE_FIELDS: dict[str, DescribedRule] = {
    "chat_template_kwargs": template_variables,
    "add_generation_prompt": said("The prompt ends with the beginning of an answer.", flag),
    "continue_final_message": said(
        "The answer goes on with the last message, an assistant's.", flag, default=False
    ),
}


def template_text(text: str) -> str:
    """The variables in V2's parameter `chat_template_kwargs`, a JSON text, checked as OpenAI's
    field."""
    name = "chat_template_kwargs"
    value = parse_json_text(name, text, MAX_TEXT, '{"add_vision_id": true}')
    found: str = template_variables.check(name, value)
    return found


def read_template_fields(read: dict[str, Any], messages: Sequence[BodyMessage]) -> TemplateFields:
    """Takes these fields out of a body's checked ones. Raises `InvalidRequest` for fields that
    contradict each other, or the `messages`."""
    given = {name: read.pop(name) for name in TEMPLATE_FIELDS if name in read}
    found = TemplateFields(**given)
    if not found.continue_final_message:
        return found
    param = "continue_final_message"
    if found.add_generation_prompt:
        message = (
            f"{param} and add_generation_prompt are both true: one goes on with the last message, "
            "the other begins a new one; leave out add_generation_prompt"
        )
        raise InvalidRequest(message, param=param)
    last = messages[-1]
    if last.role != "assistant":
        message = (
            f"{param} goes on with an assistant's message; the last one is of role {last.role}"
        )
        raise InvalidRequest(message, param=param)
    if not any(isinstance(part, str) and part.strip() for part in last.parts):
        message = f"{param} goes on with the last message, which has no text"
        raise InvalidRequest(message, param=param)
    return found
