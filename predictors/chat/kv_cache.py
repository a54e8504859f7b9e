"""Ownership and sharing of the KV cache's pages, as pure accounting on ints.

A sequence gets pages for its prompt and the answer that is expected of it when it is admitted, and
more of them, one at a time, while its answer grows (`paging`)::

    page table of a sequence, page_tokens = 4, prompt of 10 tokens, 5 of the answer so far
    tokens     0 1 2 3 | 4 5 6 7 | 8 9 a a | a a a .      . unused   a answer
    page          7    |    2    |    9    |    5
               named     named     private   private
               (shared, read-only)  written by this sequence alone

Page 0 has no owner: padding rows write there.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b

from predictors.chat.work import ChatWork

FIRST_PAGE = 1
NAME_BYTES = 32  # collisions are out of reach, also for an attacker who searches for one


class PagePool:
    """`num_pages` pages of `page_tokens` tokens, numbered from 1. Engine thread only, except for
    the properties.

    A page whose content has a name (`page_names`) may have any number of readers, and is kept after
    the last one left until its memory is needed. Any other page has exactly one owner, which may
    write to it. `observe` is called with `evict` for each named page that is given up for its
    memory. The new owner of such a page, or of a released one, may write to it although launched
    work still reads it: both run on one stream, so the write comes later.
    """

    def __init__(
        self, num_pages: int, page_tokens: int, observe: Callable[[str], None] = lambda _: None
    ) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._observe = observe
        self._free = list(range(num_pages, FIRST_PAGE - 1, -1))  # a stack, low pages first
        self._owned: dict[Hashable, tuple[int, ...]] = {}
        self._users: dict[int, int] = {}  # page -> owners that have it
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # named and unused, oldest first

    @property
    def num_free(self) -> int:
        """Pages without an owner, those included that are only kept for their content."""
        return len(self._free) + len(self._idle)

    @property
    def num_named(self) -> int:
        return len(self._name_of)

    @property
    def usage(self) -> float:
        """The part of the pages that have an owner, 0 to 1."""
        return 1.0 - self.num_free / self.num_pages

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def reserve(
        self, owner: Hashable, num_tokens: int, names: Sequence[bytes] = (), keep: int = 0
    ) -> tuple[int, ...] | None:
        """Give pages for `num_tokens` tokens to a new owner. The first ones are shared as far as
        pages of these `names` exist. None, and no change, if fewer than `keep` would be left
        free."""
        if owner in self._owned:
            raise ValueError("this owner has pages already")
        count = self.pages_for(num_tokens)
        shared = self._known(names[:count])
        free = self.num_free - sum(page in self._idle for page in shared)
        if count - len(shared) > free - keep:
            return None
        for page in shared:
            self._use(page)
        pages = (*shared, *(self._take() for _ in range(count - len(shared))))
        self._owned[owner] = pages
        return pages

    def grow(self, owner: Hashable, keep: int = 0) -> bool:
        """Add a page to those of an owner. False, and no change, if none is free or fewer than
        `keep` would be left free."""
        if self.num_free <= keep:
            return False
        self._owned[owner] = (*self._owned[owner], self._take())
        return True

    def share(self, owner: Hashable, names: Sequence[bytes], num_shared: int = 0) -> int:
        """Replace the owner's pages from `num_shared` on by pages of these `names` that were
        published since it was admitted; returns how many are shared now. The owner must not have
        begun to fill its own pages."""
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
        """The owner's pages `first` .. `end` are full and may be shared under `names`; they are not
        written to any more. A name that is known already keeps its page."""
        for page, name in zip(self._owned[owner][first:end], names[first:end], strict=True):
            if name not in self._page_of and page not in self._name_of:
                self._page_of[name] = page
                self._name_of[page] = name

    def forget(self, owner: Hashable) -> None:
        """Stop sharing the owner's pages: their content may be damaged."""
        for page in self.owned(owner):
            name = self._name_of.pop(page, None)
            if name is not None:
                del self._page_of[name]

    def owned(self, owner: Hashable) -> tuple[int, ...]:
        return self._owned.get(owner, ())

    def release(self, owner: Hashable) -> None:
        # the last page first: a page is of no use without those before it
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


def page_names(work: ChatWork, page_tokens: int) -> tuple[bytes, ...]:
    """Names of the full pages of a prompt, in order, except one that ends with the prompt's last
    token: at least one token is always computed, because the answer begins with its logits.

    A name is a hash of the previous name, the page's tokens and the pictures in it; the first one
    begins with the language model's adapters. So equal names mean equal prompts up to the page's
    end: equal adapters, tokens, features and rotary positions, which follow from tokens, grids and
    the times of films. Tokens alone are not enough: every picture has the same ones.
    """
    count = (work.num_prompt_tokens - 1) // page_tokens
    tokens = work.tokens.numpy()
    names: list[bytes] = []
    name = work.adapters.language_key or bytes(NAME_BYTES)
    pictures, ended = work.pictures, 0  # a film has hundreds of steps
    for first in range(0, count * page_tokens, page_tokens):
        end = first + page_tokens
        found = blake2b(name, digest_size=NAME_BYTES)
        found.update(tokens[first:end].tobytes())  # of one length, so that nothing can shift
        while ended < len(pictures) and pictures[ended].start + pictures[ended].length <= first:
            ended += 1
        for picture in itertools.islice(pictures, ended, None):
            if picture.start >= end:
                break
            key, grid = work.picture_key(picture), picture.prepared.grid
            where = (first - picture.start, picture.length, picture.time)
            found.update(repr((len(key), grid, *where)).encode() + key)
        name = found.digest()
        names.append(name)
    return tuple(names)
