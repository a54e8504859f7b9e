"""An answer under a grammar: the interface of grammars, and one answer's way through its own.

A matcher takes the answer's tokens one by one and says which may come next. `chat/grammars` has
the real ones.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from predictors.errors import ServingError, StepFailed

MaskWords = NDArray[np.int32]
"""Bits of the tokens that may come next: bit t % 32 of word t // 32."""
WORD_BITS = 32
ANY_TOKEN = -1
"""A word whose bits are all set."""


class AnswerMatcher(Protocol):
    """The state of one answer. Engine thread."""

    def accept(self, token: int) -> bool:
        """Take the next token. False if the grammar does not allow it; then nothing changes."""

    def fill(self, words: MaskWords) -> None:
        """Write the tokens that may come next into `words`, which are zero and have a bit for every
        logit of the model. End tokens are among them where the answer may end. Raises a
        `ServingError` for the caller if it can't be said."""

    @property
    def is_over(self) -> bool:
        """Only an end token may follow."""


class AnswerGrammar(Protocol):
    """A compiled grammar, which many answers share."""

    def matcher(self) -> AnswerMatcher:
        """A new one, at the beginning of an answer."""


class Constraint:
    """One answer's way through its grammar. Engine thread.

    `ends` are the tokens that end the answer. Where something else may come, those of `ignored`
    never come, and the others not before `min_tokens` tokens.
    """

    def __init__(
        self,
        matcher: AnswerMatcher,
        ends: Collection[int],
        ignored: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._matcher = matcher
        self._ends, self._ignored = frozenset(ends), frozenset(ignored)
        self._min_tokens = min_tokens
        self._taken = 0  # tokens
        self._is_ended = False
        self._broken: tuple[int, ServingError] | None = None
        self._filled: tuple[int, MaskWords] = (-1, np.zeros(0, np.int32))

    def take(self, index: int, token: int) -> ServingError | None:
        """Take token number `index` of the answer, which may have been taken before. Returns the
        reason if the answer can't have it."""
        if index == self._taken and self._broken is None:
            self._take(token)
        if self._broken is not None and index >= self._broken[0]:
            return self._broken[1]
        return None

    def _take(self, token: int) -> None:
        if token < 0 or token in self._ends:  # no token, or the last
            self._is_ended = True
        elif not self._matcher.accept(token):
            self._break(StepFailed(f"the answer's grammar does not allow token {token}"))
            return
        self._taken += 1

    def _break(self, reason: ServingError) -> None:
        self._broken = (self._taken, reason)

    def fill(self, index: int, words: MaskWords) -> None:
        """Write the tokens that may come as token number `index` into `words`, which are zero. All
        may where it will be dropped: the answer has ended, or can't go on. May be repeated, also
        once that token is taken."""
        if index != self._filled[0]:
            if not self._is_ended and self._broken is None:
                self._fill(words)
            if self._is_ended or self._broken is not None:
                words.fill(ANY_TOKEN)
            self._filled = index, words.copy()
        else:
            words[:] = self._filled[1]

    def _fill(self, words: MaskWords) -> None:
        try:
            self._matcher.fill(words)
        except ServingError as error:
            self._break(error)
            return
        withheld = self._ends if self._taken < self._min_tokens else self._ignored
        if withheld:
            rest = words & ~mask_of(withheld, len(words))
            if rest.any():
                words[:] = rest
        if not words.any():
            self._break(StepFailed("the answer's grammar allows no token after the last one"))


@lru_cache(maxsize=16)
def mask_of(tokens: frozenset[int], size: int) -> MaskWords:
    """These tokens as `size` words; those beyond are left out. Not to be written to."""
    words = np.zeros(size, np.uint32)
    for token in tokens:
        if token < size * WORD_BITS:
            words[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)
    return words.view(np.int32)
