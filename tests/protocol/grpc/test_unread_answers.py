"""Answers that are not read, of calls that have ended: gRPC's Python package crashes the process if
it is asked for the peer of one, and says that a call has ended a turn of the loop later.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predictors.protocol.grpc import unread_answers
from predictors.protocol.grpc.connections import Peer, read_peer
from predictors.protocol.grpc.open_calls import OpenCalls

NAME = "ipv4:127.0.0.1:5000"
AT_ONCE_S = 1e-9


class Context:
    """That of a call. gRPC's own crashes the process where this one fails."""

    def __init__(self) -> None:
        self.has_ended = False
        self.tell: Callable[[Any], None] = lambda context: None

    def peer(self) -> str:
        assert not self.has_ended
        return NAME

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.tell = callback


async def test_an_ended_call_is_not_asked_for_its_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def end(port: int, is_meant: Callable[[Peer], bool]) -> int:
        asked.append(is_meant(read_peer(NAME)))
        return 1

    monkeypatch.setattr(unread_answers, "end_connections", end)
    calls, context = OpenCalls(2, AT_ONCE_S), Context()
    calls.begin("ModelInfer", context)
    calls.answers.begin(context)
    context.has_ended = True
    await asyncio.sleep(2 * AT_ONCE_S)
    calls.answers._check()  # the timer comes before the word of the end
    assert calls.answers._closing is not None
    await calls.answers._closing
    context.tell(context)
    assert asked == [True]


def test_a_peer_is_asked_for_where_its_call_begins_and_nowhere_else() -> None:
    package = Path(unread_answers.__file__).parents[2]
    texts = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    asking = {
        name
        for name, text in texts.items()
        if ".peer()" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "peer"
    }
    assert asking == {"open_calls.py"}


async def test_an_answer_of_a_call_that_is_known_to_have_ended_is_not_waited_for() -> None:
    calls, context = OpenCalls(2, AT_ONCE_S), Context()
    calls.begin("ModelInfer", context)
    context.tell(context)
    calls.answers.begin(context)  # its handler goes on for a moment
    assert calls.answers._timer is None
