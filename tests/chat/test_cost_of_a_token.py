"""The work that a token takes from its delta to its event, counted in calls of this package's
functions, so that a feature can't make it slower unseen. No clock decides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import predictors
from predictors.chat.chunks import ChunkEncoder
from predictors.chat.detokenize import AnswerReader
from predictors.chat.request import ChatDelta, ChatRequest, Sampling
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody

PACKAGE = str(Path(predictors.__file__).parent)
MOST_CALLS = 5
"""Reader and stop finder, encoder, text and event. Before it is raised: can callers who do not use
the new feature be spared its calls?"""


class Letters:
    """A vocabulary in which a token is a byte."""

    def __init__(self) -> None:
        self.bytes_of: Callable[[int], bytes] = {97: b"a"}.__getitem__


def test_a_token_of_a_plain_answer_takes_no_more_calls_than_today() -> None:
    reader = AnswerReader(Letters(), ())  # type: ignore[arg-type]
    call = Call({}, protocol="openai", request_id="abc")
    body, request = ChatBody("m", (), stream=True), ChatRequest((), Sampling(), seed=1)
    encoder = ChunkEncoder(body, call, "float32", [request])
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    found = []
    for made in range(1, 6):
        delta, calls = ChatDelta((97,), 7, made), 0
        sys.setprofile(count)
        try:
            events = encoder.deltas(0, reader.feed(delta), dict)
        finally:
            sys.setprofile(None)
        assert b'"content":"a"' in events
        found.append(calls)
    assert 0 < max(found[1:]) <= MOST_CALLS  # the first makes the event's frame
