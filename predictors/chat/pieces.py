"""The pieces of an answer as protocols show them: text, and calls of the caller's tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from predictors.chat.request import ChatDelta, ChatRequest


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of call number `index`. `name` is in a call's first piece only; `arguments` is a part
    of the JSON text of an object."""

    index: int
    id: str
    name: str | None
    arguments: str


Piece = TextPiece | CallPiece


class PieceReader:
    """Reads the deltas of one answer. One thread at a time."""

    def __init__(self, request: ChatRequest) -> None:
        self.finish_reason: str | None = None
        """That of the last delta."""

    def read(self, deltas: Sequence[ChatDelta]) -> list[Piece]:
        """The pieces of new deltas, neighbours joined. No delta may follow one with a finish
        reason."""
        last = deltas[-1]
        text = last.text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        self.finish_reason = last.finish_reason
        return [TextPiece(text)] if text else []


def text_of(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
