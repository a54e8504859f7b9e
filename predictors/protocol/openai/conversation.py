"""Conversations as all text routes read them: messages with their parts, and calls of tools with
their answers.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from predictors.errors import InvalidRequest
from predictors.protocol.openai.film_fields import FilmPart
from predictors.protocol.openai.pixel_fields import AS_SERVED, RequestedPixels
from predictors.protocol.openai.tool_calls import ToolCall


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class PicturePart:
    """A picture in a message: the bytes of an image file, of any format, not decoded yet."""

    file: bytes
    where: str = field(default="image_url", compare=False)
    """The field that held it, such as `messages[0].content[1].image_url`."""
    pixels: RequestedPixels = AS_SERVED


MessagePart = str | PicturePart | FilmPart


@dataclass(frozen=True)
class BodyMessage:
    """One message. `role` is system, user, assistant or tool; pictures and films are in user ones
    only."""

    role: str
    parts: tuple[MessagePart, ...]
    """Empty where an assistant's message is nothing but calls."""
    calls: tuple[ToolCall, ...] = ()
    """Of an assistant's message."""
    call_id: str | None = None
    """Of a tool's message: the id of the call that it answers."""
    calls_at: tuple[int, ...] = ()
    """For each call the number of parts before it; empty where all calls stand behind all parts."""


def joined_turns(
    name: str, found: Iterable[tuple[int, BodyMessage]], *, joins_texts: bool, called: str
) -> tuple[BodyMessage, ...]:
    """The messages of a conversation. Those of an assistant that stand side by side are one turn if
    one of them has calls, with `joins_texts` in any case: texts and calls keep their order.

    `found` are messages and their places in the field `name`. In each of them calls stand behind
    all parts. `called` is the caller's word for
    calls and their answers. Raises `InvalidRequest` as `checked_conversation`.
    """
    turns: list[list[BodyMessage]] = []
    places: list[int] = []  # of the messages that began them
    for i, message in found:
        if turns and _is_one_turn(turns[-1], message, joins_texts):
            turns[-1].append(message)
        else:
            turns.append([message])
            places.append(i)
    messages = [_one_message(turn) for turn in turns]
    try:
        return checked_conversation(name, messages, places)
    except InvalidRequest as error:
        if not messages:
            raise
        words = f"{error.message} (here they are {called})"
        raise InvalidRequest(words, param=(error.param or name).rpartition(".")[0]) from error


def _is_one_turn(turn: Sequence[BodyMessage], message: BodyMessage, joins_texts: bool) -> bool:
    if not turn[-1].role == message.role == "assistant":
        return False
    return joins_texts or bool(message.calls) or any(each.calls for each in turn)


def _one_message(turn: Sequence[BodyMessage]) -> BodyMessage:
    if len(turn) == 1:
        return turn[0]
    parts: list[MessagePart] = []
    calls: list[ToolCall] = []
    places: list[int] = []
    for message in turn:
        parts += message.parts
        calls += message.calls
        places += [len(parts)] * len(message.calls)
    is_usual = all(place == len(parts) for place in places)
    at = () if is_usual else tuple(places)
    return BodyMessage(turn[0].role, tuple(parts), tuple(calls), calls_at=at)


def checked_conversation(
    name: str, messages: Sequence[BodyMessage], places: Sequence[int] | None = None
) -> tuple[BodyMessage, ...]:
    """The same messages. Raises `InvalidRequest` for none, for a call without its answer and for an
    answer without its call. `places` are those in the field `name`, where they differ."""
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    for message in messages:
        if message.calls or message.call_id is not None:
            unanswered = _OpenCalls(name)
            for i, each in zip(places or range(len(messages)), messages, strict=True):
                unanswered.see(i, each.calls, each.call_id)
            unanswered.close("the end")
            break
    return tuple(messages)


class _OpenCalls:
    """The calls of a conversation that have no answer yet. As for OpenAI, the messages right behind
    an assistant's calls answer them, all of them, each once."""

    def __init__(self, name: str) -> None:
        """`name` is the field of the messages."""
        self._name = name
        self._open: dict[str, str] = {}  # id -> field of its call's message

    def see(self, i: int, calls: Collection[ToolCall], answered: str | None) -> None:
        """Message number `i`, with its calls, or the id of the call that it answers. Raises
        `InvalidRequest`."""
        where = f"{self._name}[{i}]"
        if answered is None:
            self.close(where)
            self._open = {call.id: where for call in calls}
            return
        if self._open.pop(answered, None) is None:
            raise InvalidRequest(
                f"{where}.tool_call_id {answered[:40]!a} answers no open call of the assistant's "
                "message before it; send that message with its tool_calls, and each answer once",
                param=f"{where}.tool_call_id",
            )

    def close(self, where: str) -> None:
        """Raise `InvalidRequest` if a call has no answer before `where`."""
        for each, message in self._open.items():
            raise InvalidRequest(
                f"{message}.tool_calls: the call {each[:40]!a} has no answer before {where}; "
                "send a message of role tool with its tool_call_id",
                param=f"{message}.tool_calls",
            )
