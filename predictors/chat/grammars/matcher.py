"""A compiled grammar, the state of one answer in it, and the masks of all answers of a step: which
tokens may follow those so far.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from weakref import WeakSet

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from predictors.errors import InvalidRequest, ServingError

MAX_ANSWERS = 16
MAX_MASKS = 4096
"""A lexer gains about five states with a token of a string of bounded length."""
NUM_THREADS = min(8, len(os.sched_getaffinity(0)))
"""Threads that make the masks of a step, while the engine thread waits for them."""
STACK_BYTES = 8 * 2**20
"""Stack of each of these threads: as large as the engine thread's."""


class GrammarTooComplex(InvalidRequest):
    """One token of the answer would take more work than a step may."""


class CompiledGrammar:
    """A compiled grammar. Thread-safe, but for `lend`. Its matchers share a lexer, which makes one
    mask at a time and grows with every text that it has not met; one that is full fails them all.
    So it is not lent for long, and a format that many ask for at once has several."""

    def __init__(self, start: LLMatcher) -> None:
        self.start = start
        self.num_masks = 0
        """Made by all matchers. Engine thread."""
        self.is_full = False
        self._num_lent = 0
        self._loans: WeakSet[Grammar] = WeakSet()

    @property
    def num_users(self) -> int:
        """Answers that have it now, those that wait included."""
        return len(self._loans)

    @property
    def is_open(self) -> bool:
        """One more answer may use it; else the format is compiled again."""
        return not (self.is_full or self._num_lent >= MAX_ANSWERS or self.num_masks > MAX_MASKS)

    def lend(self) -> Grammar:
        """For one more answer. One thread at a time."""
        self._num_lent += 1
        loan = Grammar(self)
        self._loans.add(loan)
        return loan


class Grammar:
    """A compiled grammar in the hands of one answer. Thread-safe."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self.compiled = compiled

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer. Takes microseconds."""
        return Matcher(self.compiled.start.deep_copy(), self)


class Matcher:
    """Follows one answer token by token. One thread at a time."""

    def __init__(self, state: LLMatcher, grammar: Grammar) -> None:
        self._state = state
        self._grammar = grammar

    @property
    def is_over(self) -> bool:
        """True once only an end token may follow."""
        return self._state.is_stopped()

    def accept(self, token: int) -> bool:
        """Take the next token of the answer; an end token is taken where the answer may end. False:
        the grammar does not take it, and it died; `fill` fails for it from now on."""
        return self._state.consume_token(token)

    @staticmethod
    def fill(
        rows: Sequence[tuple[Matcher, int]], words: NDArray[np.int32]
    ) -> list[ServingError | None]:
        """For each of (matcher, row) write the tokens that may follow to that row of `words`: bit
        t % 32 of word t // 32, rows contiguous and as long as the vocabulary needs. End tokens are
        among them where the answer may end. Returns a `GrammarTooComplex` for each answer that
        can't go on.

        One call of the library for all rows, in which it lets go of the interpreter's lock once.
        """
        # the library gives each thread neighbours: those that share a lexer wait for each other
        ordered = sorted((id(matcher._compiled), row, matcher._state) for matcher, row in rows)
        num_lexers = len({lexer for lexer, _, _ in ordered})
        threads = mask_threads(1 if num_lexers == 1 else NUM_THREADS)
        states = [(state, row) for _, row, state in ordered]
        size = words.shape[1] * words.itemsize
        threads.unsafe_compute_mask_ptr(states, words.ctypes.data, size, len(words))
        return [matcher._outcome() for matcher, _ in rows]

    @property
    def _compiled(self) -> CompiledGrammar:
        return self._grammar.compiled

    def _outcome(self) -> GrammarTooComplex | None:
        """The error of the mask that was just made, or None."""
        self._compiled.num_masks += 1
        if not self._state.is_error():
            return None
        self._compiled.is_full = True
        return GrammarTooComplex(
            "the format of the answer needs more work for one token than this server spends; "
            "simplify it: shorter maxLength, fewer alternatives, plainer patterns"
        )


@cache
def mask_threads(count: int) -> LLExecutor:
    """So many threads that make masks."""
    os.putenv("RUST_MIN_STACK", str(STACK_BYTES))  # the library takes no size of its own
    try:
        return LLExecutor(count)
    finally:
        os.unsetenv("RUST_MIN_STACK")
