"""The pieces of an answer as protocols show them: text, and calls of the caller's tools. Chat
chunks and whole answers are written from them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from predictors.chat.request import ChatDelta, ChatRequest, TokenLogprob, scores_of
from predictors.chat.tools.tag_reader import Part, TagReader
from predictors.protocol.openai.tool_calls import ToolCall

TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str
    scores: tuple[TokenLogprob, ...] = ()
    """Logprobs of the tokens that came since the last piece."""


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of call number `index`. `name` is in a call's first piece only; `arguments` is a part
    of the JSON text of an object."""

    index: int
    id: str
    name: str | None
    arguments: str
    scores: tuple[TokenLogprob, ...] = ()


Piece = TextPiece | CallPiece


class PieceReader:
    """Reads the deltas of one answer. One thread at a time.

    Text that may begin a call is held back. A call that is no JSON, or of no tool of the request,
    stays text.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._tags: TagReader | None = None
        if request.tools is not None:
            self._tags = TagReader([tool.name for tool in request.tools.called])
        self._ids: list[str] = []
        self._scores: tuple[TokenLogprob, ...] = ()
        self.finish_reason: str | None = None
        """That of the last delta; `tool_calls` where it is `stop` behind complete calls."""

    def read(self, deltas: Sequence[ChatDelta]) -> list[Piece]:
        """The pieces of new deltas, neighbours joined. No delta may follow one with a finish
        reason."""
        last = deltas[-1]
        text = last.text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        for delta in deltas:
            self._scores += scores_of(delta)
        self.finish_reason = last.finish_reason
        if self._tags is None:
            return self._scored([TextPiece(text)] if text else [])
        parts = self._tags.feed(text)
        if last.finish_reason is not None:
            parts += self._tags.end()
            if last.finish_reason == "stop" and self._tags.num_calls and self._tags.is_complete:
                self.finish_reason = TOOL_CALLS
        return self._scored(self._pieces(parts))

    def _pieces(self, parts: Iterable[Part]) -> list[Piece]:
        pieces: list[Piece] = []
        for part in parts:
            before = pieces[-1] if pieces else None
            if isinstance(part, str):
                if isinstance(before, TextPiece):
                    pieces[-1] = TextPiece(before.text + part)
                else:
                    pieces.append(TextPiece(part))
            elif part.name is None and isinstance(before, CallPiece):
                arguments = before.arguments + part.arguments
                pieces[-1] = CallPiece(part.index, before.id, before.name, arguments)
            else:
                if part.name is not None:
                    self._ids.append(f"call_{secrets.token_hex(12)}")
                identity = self._ids[part.index]
                pieces.append(CallPiece(part.index, identity, part.name, part.arguments))
        return pieces

    def _scored(self, pieces: list[Piece]) -> list[Piece]:
        """Puts the scores of all tokens so far to the first piece. Those of an answer's last tokens
        may stand alone."""
        if not self._scores:
            return pieces
        if not pieces and self.finish_reason is not None:
            pieces = [TextPiece("")]
        if pieces:
            first, scores = pieces[0], self._scores
            self._scores = ()
            if isinstance(first, TextPiece):
                pieces[0] = TextPiece(first.text, scores)
            else:
                pieces[0] = CallPiece(first.index, first.id, first.name, first.arguments, scores)
        return pieces


def whole_answer(
    request: ChatRequest, deltas: Sequence[ChatDelta]
) -> tuple[str, tuple[ToolCall, ...], str]:
    """The text, the calls and the finish reason of a complete answer."""
    reader = PieceReader(request)
    pieces = reader.read(deltas)
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    assert reader.finish_reason is not None
    return text, _calls(pieces), reader.finish_reason


def _calls(pieces: Iterable[Piece]) -> tuple[ToolCall, ...]:
    found: list[ToolCall] = []
    for piece in pieces:
        if isinstance(piece, CallPiece):
            if piece.name is not None:
                found.append(ToolCall(piece.id, piece.name, piece.arguments))
            else:
                before = found[piece.index]
                found[piece.index] = replace(before, arguments=before.arguments + piece.arguments)
    return tuple(found)
