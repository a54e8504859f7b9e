"""Answers under grammars: the Protocols of grammars, the state of one answer (`Constraint`), and
the masks of the answers of a pass (`fill_masks`).

A matcher takes the answer's tokens one by one and says which may come next. `chat/grammars` has
the real ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Protocol

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

    @staticmethod
    def fill(rows: Sequence[tuple[Any, int]], words: MaskWords) -> Sequence[ServingError | None]:
        """For each of (matcher of this class, row) write the tokens that may come next to that row
        of `words` (rows, words), which has a bit for every logit of the model and holds anything.
        End tokens are among them where the answer may end. Returns for each the error for the
        caller if it can't be said."""

    @property
    def is_over(self) -> bool:
        """Only an end token may follow."""


class AnswerGrammar(Protocol):
    """A compiled grammar, which many answers share."""

    def matcher(self) -> AnswerMatcher:
        """A new one, at the beginning of an answer."""


class Constraint:
    """The state of one answer in its grammar. Engine thread.

    `ends` are the tokens that end the answer. Where another token may come, those of `ignored` may
    not come at all, and the other ends not before `min_tokens` tokens.
    """

    def __init__(
        self,
        matcher: AnswerMatcher,
        ends: Collection[int],
        ignored: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self.matcher = matcher
        self._ends, self._ignored = frozenset(ends), frozenset(ignored)
        self._min_tokens = min_tokens
        self._taken = 0  # tokens
        self._is_ended = False
        self._broken: tuple[int, ServingError] | None = None
        self._filled = -1
        self._mask: MaskWords = np.zeros(0, np.int32)

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
        elif not self.matcher.accept(token):
            self._break(StepFailed(f"the answer's grammar does not allow token {token}"))
            return
        self._taken += 1

    def _break(self, reason: ServingError) -> None:
        self._broken = (self._taken, reason)

    def recall(self, index: int, words: MaskWords) -> bool:
        """Write the mask of token number `index` to `words` if that needs no matcher; returns True
        then. It is the last mask again, or all tokens for an answer that has ended or failed: its
        token will be dropped."""
        if index == self._filled:
            words[:] = self._mask
            return True
        if self._is_ended or self._broken is not None:
            self._keep(index, words, is_any=True)
            return True
        return False

    @property
    def withheld(self) -> frozenset[int]:
        """Tokens that may not come next, unless nothing else may."""
        return self._ends if self._taken < self._min_tokens else self._ignored

    def made(
        self, index: int, words: MaskWords, reason: ServingError | None, *, is_empty: bool
    ) -> None:
        """Note that the mask of token number `index` was written to `words`, or can't be made for a
        `reason`. `is_empty`: no token may come."""
        if reason is not None:
            self._break(reason)
        elif is_empty:
            self._break(StepFailed("the answer's grammar allows no token after the last one"))
        self._keep(index, words, is_any=self._broken is not None)

    def _keep(self, index: int, words: MaskWords, *, is_any: bool) -> None:
        if is_any:
            words.fill(ANY_TOKEN)
        self._mask, self._filled = words, index


def fill_masks(asked: Sequence[tuple[Constraint, int]], words: MaskWords) -> None:
    """Write to row i of `words` (rows, words) the mask of the i-th of `asked`: a constraint and the
    number of the token in its answer. Matchers are asked together, once. May be repeated with other
    `words`, also once tokens are taken. `words` is kept and must not change later. Engine
    thread."""
    new = [row for row, (each, index) in enumerate(asked) if not each.recall(index, words[row])]
    if not new:
        return
    matchers = [asked[row][0].matcher for row in new]
    reasons = matchers[0].fill(list(zip(matchers, new, strict=True)), words)
    any_bits = np.bitwise_or.reduce(words, axis=1)
    _withhold([(row, asked[row][0].withheld) for row in new], words)
    for row, reason in zip(new, reasons, strict=True):
        each, index = asked[row]
        each.made(index, words[row], reason, is_empty=not any_bits[row])


def _withhold(asked: Sequence[tuple[int, frozenset[int]]], words: MaskWords) -> None:
    """Take tokens out of rows of `words`, except where no token would be left."""
    before = []
    for row, tokens in asked:
        if tokens:
            places, others = _words_of(tokens, words.shape[1])
            before.append((row, places, words[row, places]))
            words[row, places] &= others
    if not before:
        return
    any_bits = np.bitwise_or.reduce(words, axis=1)
    for row, places, values in before:
        if not any_bits[row]:
            words[row, places] = values


@lru_cache(maxsize=16)
def _words_of(tokens: frozenset[int], size: int) -> tuple[NDArray[np.intp], MaskWords]:
    """Which of `size` words have bits of these tokens, and all other bits of those words."""
    mask = mask_of(tokens, size)
    (places,) = mask.nonzero()
    return places, ~mask[places]


@lru_cache(maxsize=16)
def mask_of(tokens: frozenset[int], size: int) -> MaskWords:
    """These tokens as `size` words; those beyond are left out. Not to be written to."""
    words = np.zeros(size, np.uint32)
    for token in tokens:
        if token < size * WORD_BITS:
            words[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)
    return words.view(np.int32)
