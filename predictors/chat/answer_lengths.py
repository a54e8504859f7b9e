"""How long answers really are, learned from those that have ended."""

from __future__ import annotations

USUAL_ANSWER = 256.0  # tokens, before the first has ended
LENGTH_WEIGHT = 0.1  # of the newest answer


class AnswerLengths:
    """Learns how many tokens answers really have, by the size of their `max_tokens`. Any thread;
    one of them observes."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}  # by the number of bits of `max_tokens`
        self._mean: float = USUAL_ANSWER

    def observe(self, max_tokens: int, made: int) -> None:
        """An answer that might have had `max_tokens` has ended, or its caller has left."""
        size = max_tokens.bit_length()
        mean = self._means.get(size, made)
        self._means[size] = mean + LENGTH_WEIGHT * (made - mean)
        self._mean += LENGTH_WEIGHT * (made - self._mean)

    def expected(self, max_tokens: int) -> float:
        """The tokens that such an answer will have; of all answers where none was like it."""
        return min(max_tokens, self._means.get(max_tokens.bit_length(), self._mean))
