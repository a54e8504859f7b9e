"""The bodies of `POST /v1/messages` and of its `count_tokens`, checked and read as a chat.

Fields that Anthropic does not have are ours and mean what they mean in a chat. Worker processes
import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import AnswerFormat, schema_format
from predictors.protocol.anthropic.content_blocks import messages_of_blocks, texts_rule
from predictors.protocol.anthropic.tool_blocks import (
    CACHE_MARK,
    anthropic_choice,
    anthropic_tools,
)
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai import chat_body
from predictors.protocol.openai.chat_body import MAX_TOKENS, BodyOfChat, ChatBody, chat_of
from predictors.protocol.openai.clients import NO_TOOLS
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.fields import (
    DROP,
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    dropped,
    one_of,
    only_values,
    read_fields,
    require,
    said,
    whole,
)
from predictors.protocol.openai.objects import field_value, object_of
from predictors.protocol.openai.pixel_fields import PIXEL_FIELDS
from predictors.protocol.openai.reasoning_fields import LIMITS_OF_REASONING, NO_REASONING
from predictors.protocol.openai.tokens_body import TokenizeBody

SPELT = {
    "continue_final_message": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""Fields of a chat as this route calls them."""


class MessagesBody(BodyOfChat):
    """A checked body of `POST /v1/messages`."""

    spelt = SPELT


def decode_messages_body(raw: bytes) -> DecodedBody[MessagesBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_messages_body)


def decode_count_body(raw: bytes) -> DecodedBody[TokenizeBody]:
    """As `decode_messages_body`, for `POST /v1/messages/count_tokens`."""
    return check_body(parse_json(raw), read_count_body)


def read_messages_body(body: object) -> MessagesBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "max_tokens", "messages")
    if "stop_sequences" in read:
        read["stop"] = read.pop("stop_sequences")
    return MessagesBody(_chat(read))


def read_count_body(body: object) -> TokenizeBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, COUNT_FIELDS)
    require(read, "model", "messages")
    read.pop("output_config", None)  # no prompt shows it
    return TokenizeBody(read["model"], None, _chat(read))


def _chat(read: dict[str, Any]) -> ChatBody:
    """The chat of checked fields, which are used up."""
    messages: tuple[BodyMessage, ...] = read["messages"]
    last = messages[-1]
    if last.role == "assistant":  # the answer goes on with it
        if not any(isinstance(part, str) and part.strip() for part in last.parts):
            message = "messages ends with an assistant's message that has no text to go on with"
            raise InvalidRequest(message, param="messages")
        read["continue_final_message"] = True
    if "system" in read:
        read["messages"] = (BodyMessage("system", read.pop("system")), *messages)
    if "tool_choice" in read:
        chosen = read["tool_choice"]
        read["tool_choice"], read["parallel_tool_calls"] = chosen.choice, chosen.parallel
    if "output_config" in read:
        read["response_format"] = read.pop("output_config")
    return chat_of(read)


# -- fields ----------------------------------------------------------------------------------------
@described({"type": "object", "description": "A JSON Schema."})
def _schema(name: str, value: Any) -> AnswerFormat:
    return schema_format(name, value)


_FORMAT: dict[str, DescribedRule] = {"type": one_of("json_schema"), "schema": _schema}
_format = object_of(_FORMAT, "type", "schema")(field_value("schema"))
_OUTPUT: dict[str, DescribedRule] = {
    "format": said("The answer is JSON that a schema allows.", _format),
    "effort": only_values("high", why=NO_REASONING),
}
_TEXTS = texts_rule("a system prompt is a text, or text blocks")
SYSTEM = DescribedRule(lambda name, value: _TEXTS.check(name, value) or DROP, _TEXTS.schema)
FROM_CHAT = (
    "model", "temperature", "top_p", "top_k", "stream", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "min_p", "seed", "ignore_eos", "loras", "logit_bias", "min_tokens",
    "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens", "coordinates",
)  # fmt: skip
"""Fields with the meaning that they have in a chat."""

COUNT_FIELDS: dict[str, DescribedRule] = {
    "model": chat_body.FIELDS["model"],
    "messages": said("The conversation, oldest message first.", messages_of_blocks),
    "system": said("A system prompt before the conversation.", SYSTEM),
    "tools": said("Tools that the model may call.", anthropic_tools),
    "tool_choice": said("Whether a tool may or must be called, or which one.", anthropic_choice),
    "output_config": said("The format of the answer.", object_of(_OUTPUT)(field_value("format"))),
    "chat_template_kwargs": chat_body.FIELDS["chat_template_kwargs"],
    **PIXEL_FIELDS,
    # these can't change the answer
    "cache_control": CACHE_MARK,
    # these are only taken at the value that is served anyway
    "thinking": LIMITS_OF_REASONING["thinking"],
    "mcp_servers": only_values([], why=NO_TOOLS),
    "context_management": only_values({}, {"edits": []}, why="prompts are not shortened"),
    "speed": only_values("standard", why="there is one speed"),
}
FIELDS: dict[str, DescribedRule] = {
    **COUNT_FIELDS,
    **{name: chat_body.FIELDS[name] for name in FROM_CHAT},
    "max_tokens": said("Most tokens of the answer.", whole(1, MAX_TOKENS)),
    "stop_sequences": chat_body.FIELDS["stop"],
    "metadata": dropped(dict),
    "service_tier": dropped(str),
    "inference_geo": dropped(str, why="there is one place"),
    "container": only_values(why=NO_TOOLS),
    "diagnostics": only_values(why="no earlier request is kept to compare with"),
}
