"""A compiled grammar, and the state of one answer in it: which tokens may follow those so far."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from predictors.errors import InvalidRequest

MAX_ANSWERS = 16
MAX_MASKS = 4096
"""A lexer gains about five states with a token of a string of bounded length."""


class GrammarTooComplex(InvalidRequest):
    """One token of the answer would take more work than a step may."""


class Grammar:
    """A compiled grammar. Thread-safe. Its matchers share a lexer, which grows with every text that
    it has not met; a lexer that is full fails them all, so a grammar is not lent for long."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start
        self._num_lent = 1
        self.num_masks = 0
        """Made by all matchers. Engine thread."""
        self.is_full = False

    def lend(self) -> bool:
        """True if one more answer may use it; else it is compiled again. One thread at a time."""
        self._num_lent += 1
        return not (self.is_full or self._num_lent > MAX_ANSWERS or self.num_masks > MAX_MASKS)

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer. Takes microseconds."""
        return Matcher(self._start.deep_copy(), self)


class Matcher:
    """Follows one answer token by token. One thread at a time; the interpreter's lock is released
    while a mask is made."""

    def __init__(self, state: LLMatcher, grammar: Grammar) -> None:
        self._state = state
        self._grammar = grammar

    @property
    def is_over(self) -> bool:
        """True once only an end token may follow."""
        return self._state.is_stopped()

    def accept(self, token: int) -> bool:
        """Take the next token of the answer; an end token is taken where the answer may end. False:
        the grammar does not take it, and it died; `fill` raises from now on."""
        return self._state.consume_token(token)

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the tokens that may follow: bit t % 32 of word t // 32, `words` contiguous and as
        long as the vocabulary needs. End tokens are among them where the answer may end.

        Raises `GrammarTooComplex`; the answer can't go on.
        """
        self._state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._grammar.num_masks += 1
        if self._state.is_error():
            self._grammar.is_full = True
            raise GrammarTooComplex(
                "the format of the answer needs more work for one token than this server spends; "
                "simplify it: shorter maxLength, fewer alternatives, plainer patterns"
            )
