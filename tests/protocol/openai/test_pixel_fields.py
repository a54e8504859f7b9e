"""Every spelling of a picture's pixels in a chat body."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.conversation import PicturePart
from predictors.protocol.openai.pixel_fields import DETAILS, RequestedPixels

URL = "data:;base64,AAAA"


def read(part: dict[str, Any] | None = None, **fields: Any) -> ChatBody:
    picture = {"type": "image_url", "image_url": {"url": URL}} | (part or {})
    return read_chat_body(
        {"model": "m", "messages": [{"role": "user", "content": [picture]}], **fields}
    )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, (None, None)),
        ({"max_pixels": 5}, (None, 5)),
        ({"min_pixels": 4.0}, (4, None)),
        ({"min_pixels": 4, "max_pixels": 5}, (4, 5)),
        ({"mm_processor_kwargs": {}}, (None, None)),
        ({"mm_processor_kwargs": None, "max_pixels": None}, (None, None)),
        ({"mm_processor_kwargs": {"min_pixels": 4, "max_pixels": 5}}, (4, 5)),
        ({"mm_processor_kwargs": {"size": {"longest_edge": 5}}}, (None, 5)),
        ({"mm_processor_kwargs": {"size": {"shortest_edge": 4, "longest_edge": 5}}}, (4, 5)),
        ({"mm_processor_kwargs": {"max_pixels": 5, "size": {"longest_edge": 5}}}, (None, 5)),
        ({"max_pixels": 5, "mm_processor_kwargs": {"min_pixels": 4, "max_pixels": 5}}, (4, 5)),
    ],
)
def test_all_spellings_mean_the_same(
    fields: dict[str, Any], found: tuple[int | None, int | None]
) -> None:
    assert read(**fields).pixels == RequestedPixels(*found)


@pytest.mark.parametrize("detail", [None, *DETAILS])
def test_a_part_has_its_own(detail: str | None) -> None:
    image = {"url": URL, "detail": detail}
    body = read({"image_url": image, "min_pixels": 4, "max_pixels": 5}, max_pixels=6)
    (part,) = body.messages[0].parts
    assert isinstance(part, PicturePart)
    assert part.pixels == RequestedPixels(4, 5, detail)
    assert body.pixels == RequestedPixels(None, 6)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
            for name in ("min_pixels", "max_pixels")
        },
    )
)
def test_what_is_no_number_of_pixels_is_refused_in_every_spelling(fields: dict[str, Any]) -> None:
    size = {
        {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}[name]: value
        for name, value in fields.items()
    }
    spellings = fields, {"mm_processor_kwargs": fields}, {"mm_processor_kwargs": {"size": size}}
    outcomes = {outcome(spelling) for spelling in spellings}
    assert len(outcomes) == 1


def outcome(fields: dict[str, Any]) -> RequestedPixels | str:
    """The bounds that are asked for, or the name of the field that is refused, as in the body."""
    try:
        return read(**fields).pixels
    except InvalidRequest as refused:
        name = str(refused.param).split(".")[-1]
        return {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}.get(name, name)
