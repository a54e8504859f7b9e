"""Learns how long answers are, from those that have ended, to estimate the cost of later ones."""

from __future__ import annotations

USUAL_ANSWER = 256.0  # tokens, before the first has ended
LENGTH_WEIGHT = 0.1  # of the newest answer
OPEN = 0  # in place of the bits of `max_tokens`, of which each has at least one


class AnswerLengths:
    """Means of the tokens that answers had, by the size of their `max_tokens`. Answers whose
    requests named none (`is_open`) have a mean of their own. Any thread may read; one thread
    observes."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}  # by the number of bits of `max_tokens`, or `OPEN`
        self._mean: float = USUAL_ANSWER

    def observe(self, max_tokens: int, made: int, *, is_open: bool = False) -> None:
        """Count an answer with `made` tokens that has ended, or whose caller has left."""
        size = OPEN if is_open else max_tokens.bit_length()
        mean = self._means.get(size, made)
        self._means[size] = mean + LENGTH_WEIGHT * (made - mean)
        self._mean += LENGTH_WEIGHT * (made - self._mean)

    def expected(self, max_tokens: int, *, is_open: bool = False) -> float:
        """The expected tokens of an answer: the mean of its size, else of all answers."""
        size = OPEN if is_open else max_tokens.bit_length()
        return min(max_tokens, self._means.get(size, self._mean))
