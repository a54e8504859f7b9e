"""The interface between the engine and grammars: a matcher per answer takes its tokens one by one,
and says which may come next. `chat/grammars` has the real ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

AllowedTokens = NDArray[np.int32]
"""Bits of the tokens that may come next: bit t % 32 of word t // 32."""


class AnswerMatcher(Protocol):
    """The state of one answer. Engine thread."""

    def accept(self, token: int) -> bool:
        """Take the next token. False if the grammar does not allow it; then nothing changes."""

    def fill(self, words: AllowedTokens) -> None:
        """Write the tokens that may come next into `words`, which are zero and have a bit for every
        logit of the model. End tokens are among them where the answer may end."""

    @property
    def is_over(self) -> bool:
        """Only an end token may follow."""


class AnswerGrammar(Protocol):
    """A compiled grammar, which many answers share."""

    def matcher(self) -> AnswerMatcher:
        """A new one, at the beginning of an answer."""
