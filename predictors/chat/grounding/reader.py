"""Adds an answer's boxes to its last delta, for the requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from predictors.chat.detokenize import AnswerReader, Vocabulary
from predictors.chat.request import ChatDelta, LastDelta, PictureBox


class BoxReader:
    """An `AnswerReader` whose last delta has the boxes that `find` reads from the answer. One per
    job; one thread at a time.

    The text for `find` has the control tokens that the caller's text has not: Qwen2-VL writes
    boxes between two of them.
    """

    def __init__(
        self,
        reader: AnswerReader,
        vocabulary: Vocabulary,
        find: Callable[[str], tuple[PictureBox, ...]],
    ) -> None:
        self._reader, self._find = reader, find
        self._spelling_of = vocabulary.spelling_of
        self._spelled: list[bytes] = []
        self._shown: list[str] = []

    @property
    def done(self) -> bool:
        """True once a stop string ended the answer."""
        return self._reader.done

    def feed(self, chunk: ChatDelta) -> list[ChatDelta]:
        """As `AnswerReader.feed`."""
        self._spelled += map(self._spelling_of, chunk.tokens)
        deltas = self._reader.feed(chunk)
        self._shown += [delta.text for delta in deltas]
        return [self._with_boxes(x) if isinstance(x, LastDelta) else x for x in deltas]

    def _with_boxes(self, last: LastDelta) -> LastDelta:
        if self._reader.done:  # the tokens may go on after the stop string
            text = "".join(self._shown)
        else:
            text = b"".join(self._spelled).decode(errors="replace")
        return replace(last, boxes=self._find(text))
