"""A least-recently-used cache bounded in bytes. Knows nothing of what it holds; used on the engine
thread only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteBoundedCache(Generic[K, V]):
    """Keeps at most `max_bytes` of values by `size_of`; a value larger than that is never kept.

    `observe` is called with `hit`, `miss` or `evict`.
    """

    def __init__(
        self,
        max_bytes: int,
        size_of: Callable[[V], int],
        observe: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._observe = observe
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        """Whether it is kept; neither counted nor a use."""
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value, now the most recently used, or None."""
        entry = self._entries.get(key)
        self._observe("miss" if entry is None else "hit")
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V) -> None:
        """Keep the value, dropping the least recently used until it fits."""
        size = self._size_of(value)
        previous = self._entries.pop(key, None)
        if previous is not None:
            self.num_bytes -= previous[1]
        if size > self._max_bytes:
            return
        self._entries[key] = (value, size)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.num_bytes -= dropped
            self._observe("evict")

    def drop(self, key: K) -> None:
        """Keep it no longer; nothing happens if it is not kept. Not counted."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry[1]
