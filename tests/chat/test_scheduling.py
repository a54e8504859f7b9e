"""The plan of the next step, for any mixture of prompts and answers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.limits import (
    MOST_WASTE,
    PACK_ALIGN,
    aligned,
    chunk_widths,
    decode_widths,
    packed_widths,
    powers_to,
)
from predictors.chat.scheduling import (
    PACK_PROMPTS,
    SequenceProgress,
    next_chunk,
    plan_packed,
    plan_single,
)

progress = st.lists(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=12
).map(lambda pairs: [SequenceProgress(i, done, total) for i, (done, total) in enumerate(pairs)])
largest = st.sampled_from([1, 2, 3, 16, 64, 256])


@given(progress, largest)
def test_every_sequence_that_can_decode_does(found: list[SequenceProgress[int]], most: int) -> None:
    plan = plan_single(found, chunk_widths(most))
    assert plan.decode == tuple(s.key for s in found if s.done == s.total)


@given(progress, largest)
def test_prompts_are_read_in_order_within_the_budget_and_one_always(
    found: list[SequenceProgress[int]], most: int
) -> None:
    widths = chunk_widths(most)
    plan = plan_single(found, widths)
    reading = [s for s in found if s.done < s.total]
    chunks = [chunk for read in plan.prefill for chunk in read.chunks]
    assert [chunk.key for chunk in chunks] == [s.key for s in reading][: len(plan.prefill)]
    assert bool(plan.prefill) == bool(reading)
    assert sum(read.width for read in plan.prefill) <= most
    for read, chunk in zip(plan.prefill, chunks, strict=True):
        assert read.width in widths
        assert 0 < chunk.length <= read.width


@given(st.integers(1, 2000), largest, st.lists(st.integers(1, 500), max_size=6))
def test_a_prompt_is_cut_the_same_alone_and_beside_others(
    total: int, most: int, others: list[int]
) -> None:
    widths = chunk_widths(most)
    alone, done = [], 0
    while done < total:
        read = next_chunk(SequenceProgress("me", done, total), widths)
        chunk = read.chunks[0]
        alone.append((chunk.start, chunk.length, read.width))
        done += chunk.length
    progress = {"me": 0} | {f"other{i}": 0 for i in range(len(others))}
    totals = {"me": total} | {f"other{i}": n for i, n in enumerate(others)}
    order, mine = [*list(totals)[1:], "me"], []
    while progress["me"] < total:
        plan = plan_single([SequenceProgress(k, progress[k], totals[k]) for k in order], widths)
        for read in plan.prefill:
            chunk = read.chunks[0]
            progress[chunk.key] += chunk.length
            if chunk.key == "me":
                mine.append((chunk.start, chunk.length, read.width))
    assert mine == alone
    assert sum(length for _, length, _ in alone) == total


# -- several prompts per pass --------------------------------------------------------------------
@st.composite
def reading(draw: st.DrawFn) -> list[SequenceProgress[int]]:
    """Prompts with pictures that are not encoded yet."""
    found = []
    for key in range(draw(st.integers(0, 40))):
        total = draw(st.integers(1, 400))
        done = draw(st.integers(0, total))
        starts = draw(st.sets(st.integers(done, total - 1), max_size=4)) if done < total else ()
        new = tuple((start, draw(st.integers(1, 300))) for start in sorted(starts))
        found.append(SequenceProgress(key, done, total, new))
    return found


packs = st.sampled_from([16, 64, 256, 1536]).map(packed_widths)


@given(reading(), packs, st.sampled_from([1, 100, 512]))
def test_one_pass_holds_the_first_prompts_within_its_width(
    found: list[SequenceProgress[int]], widths: tuple[int, ...], most: int
) -> None:
    plan = plan_packed(found, widths, most)
    assert plan.decode == tuple(s.key for s in found if s.done == s.total)
    waiting = [s for s in found if s.done < s.total]
    assert len(plan.prefill) == bool(waiting)
    for read in plan.prefill:
        rows = sum(aligned(chunk.length) for chunk in read.chunks)
        assert read.width == min(w for w in widths if w >= rows)
        assert 0 < len(read.chunks) <= PACK_PROMPTS
        assert read.chunks[0].key == waiting[0].key  # the first one always moves on
        keys = [chunk.key for chunk in read.chunks]
        assert keys == sorted(set(keys))
        for chunk in read.chunks:
            standing = found[chunk.key]
            assert chunk.start == standing.done
            assert 0 < chunk.length <= standing.total - standing.done


@given(reading(), packs, st.sampled_from([1, 100, 512]))
def test_new_pictures_beyond_the_first_keep_to_their_budget(
    found: list[SequenceProgress[int]], widths: tuple[int, ...], most: int
) -> None:
    encoded = [
        tokens
        for read in plan_packed(found, widths, most).prefill
        for chunk in read.chunks
        for start, tokens in found[chunk.key].new_pictures
        if start < chunk.start + chunk.length
    ]
    assert len(encoded) <= 1 or sum(encoded[1:]) <= most - encoded[0]


@given(reading(), packs)
def test_every_prompt_is_read_to_its_end(
    found: list[SequenceProgress[int]], widths: tuple[int, ...]
) -> None:
    done = {s.key: s.done for s in found}
    for _ in range(sum(s.total for s in found) + 1):
        now = [
            SequenceProgress(
                s.key, done[s.key], s.total, tuple(x for x in s.new_pictures if x[0] >= done[s.key])
            )
            for s in found
        ]
        plan = plan_packed(now, widths, 100)
        if not plan.prefill:
            break
        for chunk in plan.prefill[0].chunks:
            done[chunk.key] += chunk.length
    assert done == {s.key: s.total for s in found}


# -- widths --------------------------------------------------------------------------------------
@given(st.integers(1, 4096))
def test_a_packed_pass_wastes_little_of_its_width(largest: int) -> None:
    widths = packed_widths(largest)
    assert widths[0] == PACK_ALIGN
    assert widths[-1] == aligned(largest)
    assert all(a < b and b % PACK_ALIGN == 0 for a, b in itertools.pairwise(widths))
    for rows in range(PACK_ALIGN, widths[-1] + 1, PACK_ALIGN):
        width = min(w for w in widths if w >= rows)
        assert (width - rows) / width <= MOST_WASTE


def test_the_default_pass_of_a_gpu_takes_few_graphs() -> None:
    assert len(packed_widths(1536)) == 24


@given(st.integers(1, 300))
def test_every_number_of_sequences_has_a_decode_width_with_little_waste(slots: int) -> None:
    widths = decode_widths(slots)
    assert list(widths) == sorted(set(widths))
    assert slots <= widths[-1] < slots + 32
    assert widths[: len(widths) - 1] == tuple(w for w in widths if w < slots)


def test_decode_widths_are_multiples_of_eight_from_eight_on() -> None:
    assert decode_widths(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert decode_widths(5) == (1, 2, 4, 8)
    assert decode_widths(1) == (1,)


def test_widths_are_a_quarter_a_half_and_the_whole() -> None:
    assert chunk_widths(256) == (64, 128, 256)
    assert chunk_widths(1) == (1,)
    assert powers_to(8) == (1, 2, 4, 8)
    assert powers_to(6) == (1, 2, 4, 6)
    assert powers_to(1) == (1,)
