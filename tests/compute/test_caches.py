"""The cache keeps its bound, evicts the least recently used entry and observes each event."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictors.compute.caches import ByteBoundedCache


def test_the_least_recently_used_is_evicted_first_and_each_event_observed() -> None:
    seen: list[str] = []
    cache: ByteBoundedCache[str, bytes] = ByteBoundedCache(4, len, seen.append)
    cache.put("a", b"aa")
    cache.put("b", b"bb")
    assert cache.get("a") == b"aa"
    cache.put("c", b"cc")
    assert cache.get("b") is None
    assert cache.get("a") == b"aa"
    assert seen == ["hit", "evict", "miss", "hit"]


def test_a_value_larger_than_the_bound_is_not_kept_and_removes_the_old_one() -> None:
    cache: ByteBoundedCache[str, bytes] = ByteBoundedCache(4, len)
    cache.put("a", b"aa")
    cache.put("a", b"aaaaa")
    assert cache.get("a") is None
    assert cache.num_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=40), st.integers(0, 12))
def test_the_bound_holds_and_the_size_is_right_after_any_order(
    puts: list[tuple[int, int]], bound: int
) -> None:
    cache: ByteBoundedCache[int, bytes] = ByteBoundedCache(bound, len)
    for key, size in puts:
        cache.put(key, bytes(size))
        held = [cache.get(k) for k in range(6)]
        assert cache.num_bytes == sum(len(v) for v in held if v is not None) <= bound


def test_a_dropped_entry_makes_room() -> None:
    cache: ByteBoundedCache[str, bytes] = ByteBoundedCache(10, len)
    cache.put("a", b"12345678")
    cache.drop("a")
    cache.drop("a")
    assert (len(cache), cache.num_bytes, cache.get("a")) == (0, 0, None)
