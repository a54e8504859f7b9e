"""Page accounting under any order of admissions, sharings and leavings."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from predictors.chat.kv_cache import FIRST_PAGE, PagePool
from predictors.chat.limits import EngineLimits, num_pages


class Pages(RuleBasedStateMachine):
    """Owners come, grow old and leave; the model is a dict of what each should have."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(num_pages=12, page_tokens=4)
        self.expected: dict[int, tuple[int, ...]] = {}
        self.next_owner = 0

    @rule(num_tokens=st.integers(1, 60))
    def admit(self, num_tokens: int) -> None:
        """All pages or none; refused only if too few are free."""
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


PROMPTS = st.lists(st.sampled_from("ab"), min_size=1, max_size=5)
"""Full pages of a prompt by their content; a page's name is all of it up to there."""


class SharedPages(RuleBasedStateMachine):
    """Prompts that begin alike. The model is a memory that owners write in order, page by page."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[str] = []
        self.pool = PagePool(num_pages=12, page_tokens=4, observe=self.evicted.append)
        self.memory: dict[int, bytes] = {}
        self.names: dict[int, list[bytes]] = {}
        self.filled: dict[int, int] = {}  # owner -> pages of its prompt that are there
        self.next_owner = 0

    @rule(prompt=PROMPTS, answer_tokens=st.integers(1, 12))
    def admit(self, prompt: list[str], answer_tokens: int) -> None:
        """It never fails while enough pages are unused, whatever they keep."""
        names = ["".join(prompt[: i + 1]).encode() for i in range(len(prompt))]
        tokens = 4 * len(prompt) + answer_tokens
        free, used = self.pool.num_free, self.used
        pages = self.pool.reserve(self.next_owner, tokens, names)
        if pages is None:
            assert self.pool.num_free == free
            assert self.pool.pages_for(tokens) > free
            return
        assert len(pages) == self.pool.pages_for(tokens)
        num_shared = self.pool.share(self.next_owner, names)
        assert [self.memory[page] for page in pages[:num_shared]] == names[:num_shared]
        assert not used & set(pages[num_shared:])
        for page in pages[num_shared:]:
            self.memory[page] = b"scribble"  # its own page: no other owner may see this
        self.names[self.next_owner], self.filled[self.next_owner] = names, num_shared
        self.next_owner += 1

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def share_more(self, data: st.DataObject) -> None:
        """An owner that has not begun takes over pages that others have filled since."""
        owner = data.draw(st.sampled_from(sorted(self.names)))
        if self.filled[owner] == 0:
            free = self.pool.num_free
            self.filled[owner] = self.pool.share(owner, self.names[owner])
            assert len(self.pool.owned(owner)) >= len(self.names[owner])
            assert self.pool.num_free == free or self.filled[owner]

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        """The next page of a prompt is computed."""
        owner = data.draw(st.sampled_from(sorted(self.names)))
        done, names = self.filled[owner], self.names[owner]
        if done < len(names):
            self.memory[self.pool.owned(owner)[done]] = names[done]
            self.pool.publish(owner, names, done, done + 1)
            self.filled[owner] = done + 1

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """At any time, twice for good measure."""
        owner = data.draw(st.sampled_from(sorted(self.names)))
        del self.names[owner], self.filled[owner]
        self.pool.release(owner)
        free = self.pool.num_free
        self.pool.release(owner)
        assert self.pool.num_free == free

    @property
    def used(self) -> set[int]:
        return {page for owner in self.names for page in self.pool.owned(owner)}

    @invariant()
    def every_owner_reads_its_own_content(self) -> None:
        """No owner has written to a page that another one has read or will read."""
        for owner, names in self.names.items():
            done = self.filled[owner]
            assert [self.memory[p] for p in self.pool.owned(owner)[:done]] == names[:done]

    @invariant()
    def a_page_that_is_still_to_be_written_has_one_owner(self) -> None:
        owners = {o: self.pool.owned(o) for o in self.names}
        for owner, pages in owners.items():
            others = {p for o, found in owners.items() if o != owner for p in found}
            assert not others & set(pages[self.filled[owner] :])
            assert len(set(pages)) == len(pages)

    @invariant()
    def nothing_leaks(self) -> None:
        assert len(self.used) + self.pool.num_free == 12
        assert self.pool.usage == pytest.approx(len(self.used) / 12)
        assert self.pool.num_named <= 12
        assert set(self.evicted) <= {"evict"}


SharedPages.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
test_shared_pages_have_no_writer_and_none_is_lost = SharedPages.TestCase


def test_unused_pages_are_evicted_least_recently_used_first() -> None:
    evicted: list[str] = []
    pool = PagePool(4, 1, evicted.append)
    for owner, names in (("old", [b"1", b"12"]), ("young", [b"3"])):
        pool.reserve(owner, len(names), names)
        pool.publish(owner, names, 0, len(names))
        pool.release(owner)
    assert (pool.num_free, pool.num_named, pool.usage) == (4, 3, 0.0)
    pool.reserve("first", 2)  # the free page, and the end of the older prompt
    assert (evicted, pool.num_named) == (["evict"], 2)
    assert pool.reserve("again", 2, [b"1", b"12"]) is not None
    assert pool.share("again", [b"1", b"12"]) == 1
    assert pool.reserve("more", 1) is None
    assert (pool.num_free, pool.usage) == (0, 1.0)


def test_an_owner_reserves_once() -> None:
    pool = PagePool(4, 16)
    assert pool.reserve("a", 17) == (1, 2)
    with pytest.raises(ValueError, match="already"):
        pool.reserve("a", 1)


def test_the_pool_holds_every_worst_case_unless_memory_or_a_setting_says_otherwise() -> None:
    def pages(kv_tokens: int, free: int | None) -> int:
        shapes = {"contexts": 5, "page_tokens": 16, "max_context": 100}
        return num_pages(**shapes, kv_tokens=kv_tokens, free_pages=free)

    assert pages(0, None) == 5 * 7
    assert pages(0, 10) == 10
    assert pages(0, 0) == 1
    assert pages(50, None) == 4
    assert EngineLimits(4, 16, 28, 100, (4,), (16,)).pages_per_slot == 7
