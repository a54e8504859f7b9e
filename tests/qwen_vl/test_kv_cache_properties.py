"""Page accounting under any order of admissions and leavings."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from predictors.qwen_vl.kv_cache import FIRST_PAGE, Limits, PagePool


class Pages(RuleBasedStateMachine):
    """Owners come, grow old and leave; the model is a dict of what each should have."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(num_pages=12, page_tokens=4)
        self.expected: dict[int, tuple[int, ...]] = {}
        self.next_owner = 0

    @rule(num_tokens=st.integers(1, 60))
    def admit(self, num_tokens: int) -> None:
        """Whole or not at all, and refused only when it can't be."""
        free = self.pool.num_free
        pages = self.pool.reserve(self.next_owner, num_tokens)
        wanted = -(-num_tokens // 4)
        assert (pages is None) == (wanted > free)
        if pages is not None:
            assert len(pages) == wanted
            self.expected[self.next_owner] = pages
        else:
            assert self.pool.num_free == free
        self.next_owner += 1

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Its pages are free again; a second time changes nothing."""
        owner = data.draw(st.sampled_from(sorted(self.expected)))
        del self.expected[owner]
        self.pool.release(owner)
        free = self.pool.num_free
        self.pool.release(owner)
        assert self.pool.num_free == free

    @rule(owner=st.integers(100, 110))
    def stranger_leaves(self, owner: int) -> None:
        """Somebody without pages changes nothing."""
        before = self.pool.num_free
        self.pool.release(owner)
        assert self.pool.num_free == before

    @invariant()
    def no_page_has_two_owners(self) -> None:
        owned = [page for pages in self.expected.values() for page in pages]
        assert len(set(owned)) == len(owned)
        assert all(FIRST_PAGE <= page <= 12 for page in owned)
        assert all(self.pool.owned(owner) == pages for owner, pages in self.expected.items())

    @invariant()
    def free_and_used_are_all(self) -> None:
        used = sum(map(len, self.expected.values()))
        assert used + self.pool.num_free == 12
        assert self.pool.usage == pytest.approx(used / 12)


Pages.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
test_pages_are_never_shared_and_never_lost = Pages.TestCase


def test_an_owner_reserves_once() -> None:
    pool = PagePool(4, 16)
    assert pool.reserve("a", 17) == (1, 2)
    with pytest.raises(ValueError, match="already"):
        pool.reserve("a", 1)


def test_the_pool_holds_every_worst_case_unless_memory_or_a_setting_says_otherwise() -> None:
    shapes = {"slots": 4, "page_tokens": 16, "max_context": 100}
    widths = {"decode_widths": (4,), "chunk_widths": (16,)}
    plan = lambda kv, free: Limits.plan(**shapes, kv_tokens=kv, free_pages=free, **widths)  # noqa: E731
    assert plan(0, None).num_pages == 4 * 7
    assert plan(0, 10).num_pages == 10
    assert plan(0, 0).num_pages == 1
    assert plan(50, None).num_pages == 4
    assert plan(0, None).pages_per_slot == 7
