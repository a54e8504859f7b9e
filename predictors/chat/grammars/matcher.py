"""A compiled grammar, and the state of one answer in it."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from predictors.errors import InvalidRequest


class GrammarTooComplex(InvalidRequest):
    """One token of the answer would take more work than a step may."""


class Grammar:
    """A compiled grammar. Thread-safe. Its matchers share what the library learns of it."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer. Takes microseconds."""
        return Matcher(self._start.deep_copy())


class Matcher:
    """Follows one answer token by token. One thread at a time; the interpreter's lock is released
    while a mask is made."""

    def __init__(self, state: LLMatcher) -> None:
        self._state = state

    @property
    def is_over(self) -> bool:
        """True once only an end token may follow."""
        return self._state.is_stopped()

    def accept(self, token: int) -> bool:
        """Take the next token of the answer; an end token where the answer may end changes nothing.
        False: the grammar does not take it, and it died; `fill` raises from now on."""
        return self._state.consume_token(token)

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the tokens that may follow: bit t % 32 of word t // 32, `words` contiguous and as
        long as the vocabulary needs. End tokens are among them where the answer may end.

        Raises `GrammarTooComplex`; the answer can't go on.
        """
        self._state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._state.is_error():
            raise GrammarTooComplex(
                "the format of the answer needs more work for one token than this server spends; "
                "simplify it: shorter maxLength, fewer alternatives, plainer patterns"
            )
