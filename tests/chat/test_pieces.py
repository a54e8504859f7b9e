"""Pieces of an answer: text and calls from the engine's deltas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from predictors.chat.pieces import CallPiece, PieceReader, TextPiece, whole_answer
from predictors.chat.request import ChatDelta, ChatRequest, LastDelta, ScoredDelta, TokenLogprob
from predictors.protocol.answer_format import TOOLS, AnswerFormat
from predictors.protocol.openai.tool_calls import ToolCall
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools
from tests.chat.room import chat

PLAIN = chat("hi")
OFFERED = OfferedTools((FunctionTool("f"), FunctionTool("g")), callable=("f",))
WITH_TOOLS = replace(PLAIN, tools=OFFERED, answer_format=AnswerFormat(TOOLS, "grammar"))
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def last(text: str, reason: str = "stop") -> LastDelta:
    return LastDelta((7,), 3, 9, text, reason)


def test_without_tools_an_answer_is_text_whatever_it_looks_like() -> None:
    reader = PieceReader(PLAIN)
    assert reader.read([ChatDelta((1,), 3, 1, "a "), ChatDelta((2,), 3, 2, CALL)]) == [
        TextPiece("a " + CALL)
    ]
    assert reader.finish_reason is None
    assert reader.read([last("")]) == []
    assert reader.finish_reason == "stop"


def test_a_call_has_one_id_its_name_first_and_the_reason_of_calls() -> None:
    reader = PieceReader(WITH_TOOLS)
    pieces = reader.read([ChatDelta((1,), 3, 1, "Well.\n<tool_call>\n")])
    pieces += reader.read([ChatDelta((2,), 3, 2, '{"name": "f", "arguments": {"a"')])
    pieces += reader.read([ChatDelta((3,), 3, 3, ": 1}}\n</tool_call>"), last("\n" + CALL)])
    first, second = (piece.id for piece in pieces if isinstance(piece, CallPiece) and piece.name)
    assert pieces == [
        TextPiece("Well."),
        CallPiece(0, first, "f", '{"a"'),
        CallPiece(0, first, None, ": 1}"),
        CallPiece(1, second, "f", '{"a": 1}'),
    ]
    assert first != second
    assert first.startswith("call_")
    assert reader.finish_reason == "tool_calls"


def test_a_whole_answer_is_text_calls_and_reason() -> None:
    whole = [ChatDelta((1,), 3, 1, f"Well.\n{CALL[:40]}"), last(f"{CALL[40:]}\n{CALL}")]
    text, calls, reason = whole_answer(WITH_TOOLS, whole)
    assert (text, reason) == ("Well.", "tool_calls")
    assert calls == tuple(ToolCall(call.id, "f", '{"a": 1}') for call in calls)
    assert len({call.id for call in calls}) == 2
    assert whole_answer(PLAIN, whole)[:2] == (f"Well.\n{CALL}\n{CALL}", ())


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("no call", "stop", "stop"),
        (CALL, "length", "length"),
        (CALL[:46], "stop", "stop"),  # by a stop string inside of the call
        (CALL[:-12], "stop", "tool_calls"),  # the same behind its arguments
        (CALL.replace('"f"', '"g"'), "stop", "stop"),  # a tool that may not be called
    ],
)
def test_the_finish_reason_tells_of_whole_calls_only(text: str, reason: str, shown: str) -> None:
    reader = PieceReader(WITH_TOOLS)
    reader.read([last(text, reason)])
    assert reader.finish_reason == shown


@pytest.mark.parametrize("request_", [PLAIN, WITH_TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("text", ["two words", CALL, f"say {CALL} ", "<tool_"])
def test_every_score_comes_once_and_in_order(request_: ChatRequest, text: str) -> None:
    scores = [TokenLogprob(i, -1.0, 1, ()) for i in range(len(text) + 1)]
    reader = PieceReader(request_)
    pieces = []
    for i, character in enumerate(text):
        pieces += reader.read([ScoredDelta((i,), 3, i, character, None, (scores[i],))])
    pieces += reader.read([replace(last(""), scores=(scores[-1],))])
    assert [score for piece in pieces for score in piece.scores] == scores
