"""Who owns which KV page: pure accounting on ints. Knows no tensor and no sequence beyond an
owner's key.

All a sequence can ever need is reserved when it is admitted and given back when it leaves, so a
step never fails for lack of pages and nobody is ever preempted. Page 0 belongs to no one: padding
rows write there.
"""

from __future__ import annotations

from collections.abc import Hashable
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
    """`num_pages` pages of `page_tokens` tokens, numbered from 1. Engine thread only."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._free = list(
            range(num_pages, FIRST_PAGE - 1, -1)
        )  # a stack: low pages are given first
        self._owned: dict[Hashable, tuple[int, ...]] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Owned share, 0 to 1."""
        return 1.0 - self.num_free / self.num_pages

    def pages_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens take."""
        return -(-num_tokens // self.page_tokens)

    def reserve(self, owner: Hashable, num_tokens: int) -> tuple[int, ...] | None:
        """Pages for `num_tokens` tokens, or None, changing nothing, if too few are free."""
        if owner in self._owned:
            raise ValueError("this owner has pages already")
        count = self.pages_for(num_tokens)
        if count > self.num_free:
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        self._owned[owner] = pages
        return pages

    def owned(self, owner: Hashable) -> tuple[int, ...]:
        """The owner's pages in order; empty if it has none."""
        return self._owned.get(owner, ())

    def release(self, owner: Hashable) -> None:
        """Take the owner's pages back; no-op if it has none."""
        self._free.extend(reversed(self._owned.pop(owner, ())))
