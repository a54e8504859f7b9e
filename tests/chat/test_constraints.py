"""One answer's way through a grammar: tokens once each, ends withheld, breaks that say why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from predictors.chat.constraints import Constraint, MaskWords, fill_masks, mask_of
from predictors.errors import InvalidRequest, ServingError, StepFailed
from tests.chat.token_grammars import OneOf

ENDS = (90, 91)
SIZE = 3
DIRT = 0x1234567
TREE = OneOf([(1, 2), (1, 40), (1,)], ENDS)


def constraint(grammar: OneOf = TREE, **given: object) -> Constraint:
    return Constraint(grammar.matcher(), ENDS, **given)  # type: ignore[arg-type]


def allowed(of: Constraint, index: int | None = None) -> set[int]:
    """The tokens that may come next, or as number `index`."""
    words = np.full((1, SIZE), DIRT, np.int32)
    fill_masks([(of, of._taken if index is None else index)], words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return {int(token) for token in bits.nonzero()[0]}


ALL = set(range(32 * SIZE))


def test_a_token_is_taken_once_however_often_the_step_is_repeated() -> None:
    made = constraint()
    assert allowed(made) == {1}
    for _ in range(3):
        assert made.take(0, 1) is None
        assert allowed(made) == {2, 40, 90, 91}
    for _ in range(2):
        assert made.take(1, 40) is None
        assert made.take(0, 1) is None
        assert allowed(made, 1) == {2, 40, 90, 91}  # as before it was taken
    assert allowed(made, 2) == set(ENDS)


def test_after_the_last_token_anything_may_come_because_it_is_dropped() -> None:
    made = constraint()
    for index, token in enumerate([1, 2, 91]):
        assert made.take(index, token) is None
    assert allowed(made) == ALL
    broken = constraint()
    assert broken.take(0, -1) is None  # the row is not finite: it fails for that
    assert allowed(broken) == ALL


def test_ends_come_before_min_tokens_only_where_nothing_else_may() -> None:
    made = constraint(min_tokens=5)
    made.take(0, 1)
    assert allowed(made) == {2, 40}
    made.take(1, 2)
    assert allowed(made) == set(ENDS)


def test_ignored_ends_come_only_where_nothing_else_may() -> None:
    made = constraint(ignored=[90])
    made.take(0, 1)
    assert allowed(made) == {2, 40, 91}


def test_a_token_that_the_grammar_does_not_allow_breaks_it_from_there_on() -> None:
    made = constraint()
    assert made.take(0, 1) is None
    for _ in range(2):
        reason = made.take(1, 77)
        assert isinstance(reason, StepFailed)
        assert "token 77" in reason.message
        assert made.take(0, 1) is None  # was fine, and still is
        assert allowed(made) == ALL
    assert made.take(2, 5) is reason


def test_a_grammar_that_allows_nothing_breaks_at_the_next_token() -> None:
    made = constraint(OneOf([(1, 2)], ends=[]))
    assert made.take(0, 1) is None
    assert made.take(1, 2) is None
    assert allowed(made) == ALL
    assert made.take(1, 2) is None
    assert isinstance(made.take(2, 0), StepFailed)


@pytest.mark.parametrize("error", [InvalidRequest("too complex"), StepFailed("no")])
def test_a_matcher_that_refuses_breaks_with_its_own_reason(error: ServingError) -> None:
    class Refusing:
        is_over = False

        def accept(self, token: int) -> bool:
            return True

        @staticmethod
        def fill(rows: Sequence[object], words: MaskWords) -> list[ServingError | None]:
            words[0] = 5
            return [error]

    made = Constraint(Refusing(), ENDS)
    assert allowed(made) == ALL
    assert made.take(0, 1) is error


def test_a_mask_leaves_out_tokens_beyond_it() -> None:
    words = mask_of(frozenset({0, 31, 63, 64}), 2)
    assert words.tolist() == [-(2**31) + 1, -(2**31)]
    assert not mask_of(frozenset({64}), 2).any()
