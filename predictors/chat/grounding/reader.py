"""Adds an answer's boxes to its last delta, for the requests that ask for them."""

from __future__ import annotations

from dataclasses import replace

from predictors.chat.detokenize import AnswerReader, Vocabulary
from predictors.chat.grounding.boxes import Convention
from predictors.chat.grounding.scaling import caller_boxes
from predictors.chat.request import ChatDelta, LastDelta, PictureSize


class BoxReader:
    """An `AnswerReader` whose last delta has the boxes of the answer, see `caller_boxes`. One per
    job; one thread at a time.

    They are read from a text that has the control tokens which the caller's has not: Qwen2-VL
    writes boxes between two of them.
    """

    def __init__(
        self,
        reader: AnswerReader,
        vocabulary: Vocabulary,
        convention: Convention,
        coordinates: str,
    ) -> None:
        self._reader = reader
        self._convention, self._coordinates = convention, coordinates
        self._written = vocabulary.written
        self._spelled: list[bytes] = []
        self._shown: list[str] = []

    @property
    def done(self) -> bool:
        """True once a stop string ended the answer."""
        return self._reader.done

    @property
    def may_end_early(self) -> bool:
        return self._reader.may_end_early

    def feed(self, chunk: ChatDelta) -> list[ChatDelta]:
        """As `AnswerReader.feed`."""
        self._spelled += map(self._written, chunk.tokens)
        deltas = self._reader.feed(chunk)
        self._shown += [delta.text for delta in deltas]
        return [self._with_boxes(x) if isinstance(x, LastDelta) else x for x in deltas]

    def _with_boxes(self, last: LastDelta) -> LastDelta:
        if self._reader.done:  # the tokens may go on after the stop string
            text = "".join(self._shown)
        else:
            text = b"".join(self._spelled).decode(errors="replace")
        stills = [size for size in last.pictures if isinstance(size, PictureSize)]
        boxes = caller_boxes(text, stills, self._convention, self._coordinates)
        return replace(last, boxes=boxes)
