"""A least-recently-used cache with a bound in bytes. Not thread-safe: it belongs to one engine
thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteBoundedCache(Generic[K, V]):
    """Holds at most `max_bytes` of values, measured by `size_of`. A larger value is not kept.

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
        """Neither observed nor a use of the entry."""
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value or None. The entry becomes the most recently used."""
        entry = self._entries.get(key)
        self._observe("miss" if entry is None else "hit")
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V) -> None:
        """Store the value, evicting the least recently used ones until it fits."""
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
        """Remove an entry if there is one. Not observed."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry[1]
