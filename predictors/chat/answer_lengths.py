"""How long answers really are, learned from those that have ended."""

from __future__ import annotations

USUAL_ANSWER = 256.0  # tokens, before the first has ended
LENGTH_WEIGHT = 0.1  # of the newest answer
OPEN = 0  # no `max_tokens` has so few bits


class AnswerLengths:
    """Learns how many tokens answers really have, by the size of their `max_tokens`; those whose
    requests named none (`is_open`) are of one kind, whatever the context left. Any thread; one of
    them observes."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}  # by the number of bits of `max_tokens`, or `OPEN`
        self._mean: float = USUAL_ANSWER

    def observe(self, max_tokens: int, made: int, *, is_open: bool = False) -> None:
        """An answer that might have had `max_tokens` has ended, or its caller has left."""
        size = OPEN if is_open else max_tokens.bit_length()
        mean = self._means.get(size, made)
        self._means[size] = mean + LENGTH_WEIGHT * (made - mean)
        self._mean += LENGTH_WEIGHT * (made - self._mean)

    def expected(self, max_tokens: int, *, is_open: bool = False) -> float:
        """The tokens that such an answer will have; of all answers where none was like it."""
        size = OPEN if is_open else max_tokens.bit_length()
        return min(max_tokens, self._means.get(size, self._mean))
