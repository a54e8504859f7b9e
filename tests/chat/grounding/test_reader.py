from pathlib import Path

import pytest
from tokenizers import Tokenizer

from predictors.chat.detokenize import AnswerReader, Vocabulary
from predictors.chat.grounding.boxes import PictureBox
from predictors.chat.grounding.reader import BoxReader
from predictors.chat.request import ChatDelta, PictureSize, boxes_of

TOKENIZER = Tokenizer.from_file(
    str(Path(__file__).parents[3] / "checkpoints" / "shapes-qwen-vl" / "tokenizer.json")
)
SIZES = (PictureSize(140, 140, 25, 280, 140),)
TAGGED = (
    "Here: <|object_ref_start|>a cross<|object_ref_end|><|box_start|>(14,28),(70,140)<|box_end|>."
)
LISTED = '[{"bbox_2d": [14, 28, 70, 140], "label": "a cross"}] and more'
FOUND = (PictureBox(0, "a cross", (28, 28, 140, 140)),)


def read(text: str, stops: tuple[str, ...] = (), size: int = 3) -> tuple[str, ChatDelta]:
    vocabulary = Vocabulary(TOKENIZER)
    inner = AnswerReader(vocabulary, stops, pictures=SIZES)
    reader = BoxReader(inner, vocabulary, "pixels", "original")
    tokens = tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)
    shown, deltas = "", []
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        reason = "stop" if start + size >= len(tokens) else None
        deltas = reader.feed(ChatDelta(part, 1, start + len(part), finish_reason=reason))
        shown += "".join(delta.text for delta in deltas)
        if reader.done:
            break
    return shown, deltas[-1]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("text", [TAGGED, LISTED], ids=["tagged", "listed"])
def test_the_last_delta_has_the_boxes_however_the_answer_came(text: str, size: int) -> None:
    assert boxes_of(read(text, size=size)[1]) == FOUND


def test_control_tokens_are_read_but_not_shown() -> None:
    shown, last = read(TAGGED)
    assert shown == "Here: a cross(14,28),(70,140)."
    assert boxes_of(last) == FOUND


def test_what_follows_a_stop_string_is_not_read() -> None:
    shown, last = read(f"{LISTED} {LISTED}", stops=(" and",), size=1000)
    assert shown == LISTED.removesuffix(" and more")
    assert boxes_of(last) == FOUND


def test_deltas_before_the_last_have_none() -> None:
    vocabulary = Vocabulary(TOKENIZER)
    reader = BoxReader(AnswerReader(vocabulary, ()), vocabulary, "pixels", "original")
    (delta,) = reader.feed(ChatDelta(tuple(TOKENIZER.encode("a cross").ids), 1, 2))
    assert boxes_of(delta) is None
