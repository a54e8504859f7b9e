"""Who runs in the next step, for any mixture of prompts and answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictors.qwen_vl.scheduling import Standing, chunk_widths, next_chunk, plan, powers_to

standings = st.lists(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=12
).map(lambda pairs: [Standing(i, done, total) for i, (done, total) in enumerate(pairs)])
largest = st.sampled_from([1, 2, 3, 16, 64, 256])


@given(standings, largest)
def test_whoever_can_decode_does_and_nobody_else(found: list[Standing[int]], most: int) -> None:
    turn = plan(found, chunk_widths(most))
    assert turn.decode == tuple(s.key for s in found if s.done == s.total)


@given(standings, largest)
def test_prompts_are_read_in_order_within_the_budget_and_one_always(
    found: list[Standing[int]], most: int
) -> None:
    widths = chunk_widths(most)
    turn = plan(found, widths)
    reading = [s for s in found if s.done < s.total]
    assert [chunk.key for chunk in turn.prefill] == [s.key for s in reading][: len(turn.prefill)]
    assert bool(turn.prefill) == bool(reading)
    assert sum(chunk.width for chunk in turn.prefill) <= most
    for chunk in turn.prefill:
        assert chunk.width in widths
        assert 0 < chunk.length <= chunk.width


@given(st.integers(1, 2000), largest, st.lists(st.integers(1, 500), max_size=6))
def test_a_prompt_is_cut_the_same_alone_and_in_company(
    total: int, most: int, others: list[int]
) -> None:
    widths = chunk_widths(most)
    alone, done = [], 0
    while done < total:
        chunk = next_chunk(Standing("me", done, total), widths)
        alone.append((chunk.start, chunk.length, chunk.width))
        done += chunk.length
    progress = {"me": 0} | {f"other{i}": 0 for i in range(len(others))}
    totals = {"me": total} | {f"other{i}": n for i, n in enumerate(others)}
    order, mine = [*list(totals)[1:], "me"], []
    while progress["me"] < total:
        turn = plan([Standing(k, progress[k], totals[k]) for k in order], widths)
        for chunk in turn.prefill:
            progress[chunk.key] += chunk.length
            if chunk.key == "me":
                mine.append((chunk.start, chunk.length, chunk.width))
    assert mine == alone
    assert sum(length for _, length, _ in alone) == total


def test_widths_are_a_quarter_a_half_and_the_whole() -> None:
    assert chunk_widths(256) == (64, 128, 256)
    assert chunk_widths(1) == (1,)
    assert powers_to(8) == (1, 2, 4, 8)
    assert powers_to(6) == (1, 2, 4, 6)
    assert powers_to(1) == (1,)
