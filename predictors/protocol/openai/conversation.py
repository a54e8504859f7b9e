"""Conversations as all text routes read them: messages with their parts, and calls of tools with
their answers.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """Calls of tools in an assistant's message."""
    call_id: str | None = None
    """The id of the call that a tool's message answers."""
    calls_at: tuple[int, ...] = ()
    """For each call the number of parts before it; empty where all calls stand behind all parts."""
    where: str = field(default="", compare=False)
    """The field that held it, such as `messages[1]`."""


@dataclass(frozen=True)
class AnswerWords:
    """A route's words for the answer to a call, and the answer's field for the call's id."""

    answer: str
    id_field: str


CHAT_ANSWERS = AnswerWords("a message of role tool", "tool_call_id")


def joined_turns(
    name: str, found: Iterable[BodyMessage], *, joins_texts: bool, words: AnswerWords
) -> tuple[BodyMessage, ...]:
    """The messages of a conversation. Those of an assistant that stand side by side are one turn if
    one of them has calls, with `joins_texts` in any case: texts and calls keep their order.

    `found` are the messages of the field `name`. In each of them calls stand behind all parts.
    Raises `InvalidRequest` as `checked_conversation`.
    """
    turns: list[list[BodyMessage]] = []
    for message in found:
        if turns and _is_one_turn(turns[-1], message, joins_texts):
            turns[-1].append(message)
        else:
            turns.append([message])
    return checked_conversation(name, [_one_message(turn) for turn in turns], words)


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
    first = turn[0]
    return BodyMessage(first.role, tuple(parts), tuple(calls), calls_at=at, where=first.where)


def checked_conversation(
    name: str, messages: Sequence[BodyMessage], words: AnswerWords
) -> tuple[BodyMessage, ...]:
    """`messages` of the field `name`, checked. Raises `InvalidRequest` for an empty list, for two
    calls of one message with one id, for a call without its answer and for an answer without its
    call."""
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    for message in messages:
        if message.calls or message.call_id is not None:
            turn = _OpenCalls(words)
            for each in messages:
                turn.see(each)
            turn.close(f"the end of {name}")
            break
    return tuple(messages)


class _OpenCalls:
    """The calls of the last turn, and those that have no answer yet. As for OpenAI, the messages
    right behind an assistant's calls answer them, all of them, each once."""

    def __init__(self, words: AnswerWords) -> None:
        self._words = words
        self._open: dict[str, ToolCall] = {}  # by id
        self._answered: dict[str, str] = {}  # id of a call -> the answer's field for it

    def see(self, message: BodyMessage) -> None:
        """Raises `InvalidRequest`."""
        answered = message.call_id
        if answered is None:
            self.close(message.where)
            self._answered = {}
            for call in message.calls:
                self._add(call)
            return
        path, shown = f"{message.where}.{self._words.id_field}", f"{answered[:40]!a}"
        if answered in self._answered:
            problem = f"is answered by {self._answered[answered]} already; send each answer once"
            raise InvalidRequest(f"{path}: the call {shown} {problem}", param=path)
        if self._open.pop(answered, None) is None:
            problem = "is of no call in the assistant's turn before it; send that turn with its"
            raise InvalidRequest(f"{path} {shown} {problem} calls", param=path)
        self._answered[answered] = path

    def _add(self, call: ToolCall) -> None:
        if call.id in self._open:
            problem = f"is the id of {self._open[call.id].where} as well; give each its own"
            message = f"{call.where} {call.id[:40]!a} {problem}"
            raise InvalidRequest(message, param=call.where)
        self._open[call.id] = call

    def close(self, where: str) -> None:
        """Raise `InvalidRequest` if a call has no answer before `where`."""
        for call in self._open.values():
            advice = f"send {self._words.answer} with its {self._words.id_field}"
            problem = f"the call {call.id[:40]!a} has no answer before {where}; {advice}"
            raise InvalidRequest(f"{call.where}: {problem}", param=call.where)
