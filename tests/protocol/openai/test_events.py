"""`TextEvents` makes the bytes that encoding each event as a whole makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictors.protocol.openai.events import DONE, TextEvents, event


def chunk(text: str, name: str) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": f"chatcmpl-{name}", "model": name, "choices": [choice], "usage": None}


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(ANY_TEXT, ANY_TEXT | st.just('"content":""'))
def test_an_event_with_any_text_equals_the_event_encoded_as_a_whole(text: str, name: str) -> None:
    assert TextEvents(chunk("", name)).event(text) == event(chunk(text, name))


def test_a_line_break_in_a_text_never_ends_an_event() -> None:
    assert TextEvents(chunk("", "a")).event("a\n\nb\r").count(b"\n") == 2


def test_the_last_event_is_done() -> None:
    assert DONE == b"data: [DONE]\n\n"
