"""The `messages` of a chat body, checked part by part. Knows neither template nor picture formats.

A picture stays the string that came (a data URL, or an address); whether it may be read is the
room's to say.
"""

from __future__ import annotations

from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.images import read_data_url
from predictors.protocol.openai.fields import (
    Rule,
    harmless,
    ignored,
    list_of,
    one_of,
    read_fields,
    require,
    text,
    wrong,
)

MAX_TEXT = 2**21  # characters of one part
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # per message; the bound on pictures is lower and the room's
ROLES = ("system", "developer", "user", "assistant")
_NO_TOOLS = "this server calls no tools"
_FULL_DETAIL = "pictures are always read in full, within the server's pixel limits"


def read_messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Checked messages, at least one: `{"role": system|user|assistant, "content": str | parts}`;
    a rule.

    A part is `{"type": "text", "text": str}` or `{"type": "image_url", "image_url": {"url":
    str}}`; pictures stand in user messages only. `developer` becomes `system`. The empty fields
    that OpenAI's client sends back with an assistant's message (`refusal`, `tool_calls`, ...) are
    dropped.
    """
    rule = list_of(_message, at_most=MAX_MESSAGES, noun="messages")
    messages: list[dict[str, Any]] = rule(name, value)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    return messages


def _role(name: str, value: Any) -> str:
    if value in ("tool", "function"):
        raise InvalidRequest(f"{name} {value!r} is not supported: {_NO_TOOLS}", param=name)
    role: str = one_of(*ROLES)(name, value)
    return "system" if role == "developer" else role


def _content(name: str, value: Any) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return text(at_most=MAX_TEXT)(name, value)  # type: ignore[no-any-return]
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of parts", value)
    parts: list[dict[str, Any]] = list_of(_part, at_most=MAX_PARTS, noun="parts")(name, value)
    if not parts:
        raise InvalidRequest(f"{name} has no parts", param=name)
    return parts


_MESSAGE: dict[str, Rule] = {
    "role": _role,
    "content": _content,
    "name": ignored(str),
    "refusal": harmless("", why="only its null is taken back"),
    "audio": harmless(why="messages are text and pictures"),
    "annotations": harmless([], why="only an empty list is taken back"),
    "tool_calls": harmless([], why=_NO_TOOLS),
    "function_call": harmless(why=_NO_TOOLS),
    "tool_call_id": harmless(why=_NO_TOOLS),
    "reasoning": harmless("", why="no model here reasons before it answers"),
    "reasoning_content": harmless("", why="no model here reasons before it answers"),
}


def _message(name: str, value: Any) -> dict[str, Any]:
    read = read_fields(value, _MESSAGE, where=name)
    require(read, "role", "content", where=name)
    if read["role"] != "user" and isinstance(read["content"], list):
        for i, part in enumerate(read["content"]):
            if part["type"] == "image_url":
                where = f"{name}.content[{i}]"
                message = f"{where}: pictures stand in user messages, not in {read['role']} ones"
                raise InvalidRequest(message, param=where)
    return read


def _image_url(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, str):  # not OpenAI's spelling, but a common one
        value = {"url": value}
    rules: dict[str, Rule] = {
        "url": text(),
        "detail": harmless("auto", "high", "original", why=_FULL_DETAIL),
    }
    read = read_fields(value, rules, where=name)
    require(read, "url", where=name)
    return read


_PARTS: dict[str, dict[str, Rule]] = {
    "text": {"type": text(), "text": text(at_most=MAX_TEXT)},
    "image_url": {"type": text(), "image_url": _image_url},
}
_OTHER_PARTS = ("input_audio", "audio_url", "video_url", "file", "refusal")


def _part(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type", value)
    kind: Any = value.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        message = f"{name}.type {kind!r} is not supported: parts are text or image_url"
        raise InvalidRequest(message, param=f"{name}.type")
    kind = one_of(*_PARTS)(f"{name}.type", kind)
    read = read_fields(value, _PARTS[kind], where=name)
    require(read, kind, where=name)
    return read


def read_files(body: dict[str, Any]) -> dict[str, Any]:
    """`body`, each picture's data URL replaced by the file that it holds: `{"url": ..., "file":
    bytes}` with what stands before the comma as url. Raises `InvalidRequest` for another address.
    """
    for i, message in enumerate(body["messages"]):
        if isinstance(message["content"], list):
            for j, part in enumerate(message["content"]):
                if part["type"] == "image_url":
                    image, where = part["image_url"], f"messages[{i}].content[{j}].image_url"
                    image["file"] = read_data_url(image["url"], param=where)
                    image["url"] = image["url"].partition(",")[0]
    return body
