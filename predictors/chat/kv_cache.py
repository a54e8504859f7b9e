"""Who uses which KV page: pure accounting on ints. Knows no tensor, and of a sequence no more than
its owner's key.

All a sequence can ever need is reserved when it is admitted and given back when it leaves, so a
step never fails for lack of pages and nobody is ever preempted. Page 0 belongs to no one: padding
rows write there. A page whose content has a name (see `prefixes`) may have any number of readers,
and is kept when the last one leaves until somebody needs the room; a page without one has exactly
one owner, who may write to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

FIRST_PAGE = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Shapes of a runner. `decode_widths` and `chunk_widths` ascend; `num_pages` without the
    scratch page.
    """

    slots: int
    page_tokens: int
    num_pages: int
    max_context: int
    decode_widths: tuple[int, ...]
    chunk_widths: tuple[int, ...]

    @property
    def pages_per_slot(self) -> int:
        """Width of the page table."""
        return -(-self.max_context // self.page_tokens)

    @classmethod
    def plan(
        cls,
        *,
        slots: int,
        page_tokens: int,
        kv_tokens: int,
        max_context: int,
        free_pages: int | None,
        decode_widths: tuple[int, ...],
        chunk_widths: tuple[int, ...],
    ) -> Limits:
        """Pages for `kv_tokens`, or if that is 0 for every slot's worst case, as far as
        `free_pages` (None: any number) allows.
        """
        wanted = slots * -(-max_context // page_tokens)
        if kv_tokens:
            num_pages = -(-kv_tokens // page_tokens)
        else:
            num_pages = wanted if free_pages is None else max(1, min(wanted, free_pages))
        return cls(slots, page_tokens, num_pages, max_context, decode_widths, chunk_widths)


class PagePool:
    """`num_pages` pages of `page_tokens` tokens, numbered from 1. Engine thread only, but for the
    numbers.

    `observe` is told `evict` for each named page that is given up for its room. Whoever gets such a
    page, or one that was given back, may write to it although launched work still reads it: both
    run on one stream, so the write comes later.
    """

    def __init__(
        self, num_pages: int, page_tokens: int, observe: Callable[[str], None] = lambda _: None
    ) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._observe = observe
        self._free = list(
            range(num_pages, FIRST_PAGE - 1, -1)
        )  # a stack: low pages are given first
        self._owned: dict[Hashable, tuple[int, ...]] = {}
        self._users: dict[int, int] = {}  # page -> owners that have it
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # named and unused, oldest first

    @property
    def num_free(self) -> int:
        """Pages that nobody uses, those included that are only kept for their content."""
        return len(self._free) + len(self._idle)

    @property
    def num_named(self) -> int:
        """Pages whose content can be shared."""
        return len(self._name_of)

    @property
    def usage(self) -> float:
        """Used share, 0 to 1; a page with many readers counts once."""
        return 1.0 - self.num_free / self.num_pages

    def pages_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens take."""
        return -(-num_tokens // self.page_tokens)

    def reserve(
        self, owner: Hashable, num_tokens: int, names: Sequence[bytes] = ()
    ) -> tuple[int, ...] | None:
        """Pages for `num_tokens` tokens, the first ones shared as far as `names` are known; or
        None, changing nothing, if too few are free.
        """
        if owner in self._owned:
            raise ValueError("this owner has pages already")
        count = self.pages_for(num_tokens)
        shared = self._known(names[:count])
        if count - len(shared) > self.num_free - sum(page in self._idle for page in shared):
            return None
        for page in shared:
            self._use(page)
        pages = (*shared, *(self._take() for _ in range(count - len(shared))))
        self._owned[owner] = pages
        return pages

    def share(self, owner: Hashable, names: Sequence[bytes], num_shared: int = 0) -> int:
        """How many of the owner's first pages hold what `names` say, `num_shared` at least. Pages
        that became known since it came are exchanged for its own, which it must not have begun to
        fill.
        """
        found = self._known(names[num_shared:])
        if not found:
            return num_shared
        owned, end = self._owned[owner], num_shared + len(found)
        for mine, known in zip(owned[num_shared:end], found, strict=True):
            self._use(known)
            self._drop(mine)
        self._owned[owner] = (*owned[:num_shared], *found, *owned[end:])
        return end

    def publish(self, owner: Hashable, names: Sequence[bytes], first: int, end: int) -> None:
        """The owner's pages `first` .. `end` are full and hold what `names` say; from now on nobody
        writes to them. A content that is known already keeps its page.
        """
        for page, name in zip(self._owned[owner][first:end], names[first:end], strict=True):
            if name not in self._page_of and page not in self._name_of:
                self._page_of[name] = page
                self._name_of[page] = name

    def forget(self, owner: Hashable) -> None:
        """Stop sharing the owner's pages: their content may be broken."""
        for page in self.owned(owner):
            name = self._name_of.pop(page, None)
            if name is not None:
                del self._page_of[name]

    def owned(self, owner: Hashable) -> tuple[int, ...]:
        """The owner's pages in order; empty if it has none."""
        return self._owned.get(owner, ())

    def release(self, owner: Hashable) -> None:
        """Take the owner's pages back; no-op if it has none."""
        # the last page first: a page is worth nothing without those before it
        for page in reversed(self._owned.pop(owner, ())):
            self._drop(page)

    def _known(self, names: Sequence[bytes]) -> tuple[int, ...]:
        pages = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
        return tuple(pages)

    def _take(self) -> int:
        if not self._free:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._name_of.pop(page)]
            self._free.append(page)
            self._observe("evict")
        page = self._free.pop()
        self._users[page] = 1
        return page

    def _use(self, page: int) -> None:
        self._idle.pop(page, None)
        self._users[page] = self._users.get(page, 0) + 1

    def _drop(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._name_of:
            self._idle[page] = None
        else:
            self._free.append(page)
