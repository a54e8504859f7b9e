"""A step has one shape and no more rows than fit, the least work first, and no picture starves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from math import inf
from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from predictors.diffusion.scheduling import Candidate, DiffusionJob, Slot, best_widths, pick_group

WIDTHS = {"a": 1, "b": 2, "c": 4}
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abc"),
        st.integers(1, 2),
        st.integers(1, 9).map(float),
        st.integers(0, 9).map(float),
    ),
    max_size=12,
)
LIMIT_S = 5.0


@given(CANDIDATES)
def test_a_step_is_of_one_shape_and_fits_its_width(candidates: list[Candidate]) -> None:
    picked = pick_group(candidates, WIDTHS.__getitem__, LIMIT_S)
    assert bool(picked) == bool(candidates)  # never idle with work to do
    assert picked == sorted(set(picked))
    if picked:
        chosen = [candidates[i] for i in picked]
        assert len({one.shape for one in chosen}) == 1
        assert len(chosen) == 1 or sum(one.num_rows for one in chosen) <= WIDTHS[chosen[0].shape]


@given(CANDIDATES.filter(len))
def test_the_longest_wait_beyond_the_limit_goes_first_and_else_the_least_left(
    candidates: list[Candidate],
) -> None:
    chosen = [candidates[i] for i in pick_group(candidates, WIDTHS.__getitem__, LIMIT_S)]
    longest = max(one.waited_s for one in candidates)
    if longest > LIMIT_S:
        assert any(one.waited_s == longest for one in chosen)
    else:
        assert any(one.remaining == min(p.remaining for p in candidates) for one in chosen)


@given(CANDIDATES.filter(len))
def test_no_picture_of_the_shape_that_fits_is_left_out(candidates: list[Candidate]) -> None:
    picked = pick_group(candidates, WIDTHS.__getitem__, LIMIT_S)
    shape = candidates[picked[0]].shape
    free = WIDTHS[str(shape)] - sum(candidates[i].num_rows for i in picked)
    left = [p for i, p in enumerate(candidates) if i not in picked and p.shape == shape]
    assert all(one.num_rows > free for one in left)


@given(CANDIDATES.filter(len), st.integers(0, 11))
def test_equal_pictures_go_in_order_of_admission(candidates: list[Candidate], waited: int) -> None:
    alike = [Candidate("a", 1, 3.0, float(waited)) for _ in candidates]
    assert pick_group(alike, WIDTHS.__getitem__, LIMIT_S) == [0]


def test_a_picture_with_a_deadline_is_passed_over_for_its_patience_at_most() -> None:
    short, long = Candidate("a", 1, 1.0, 0.0), Candidate("a", 1, 9.0, 3.0)
    one = {"a": 1}.__getitem__
    assert pick_group([short, long], one, LIMIT_S) == [0]
    assert pick_group([short, replace(long, patience_s=3.0)], one, LIMIT_S) == [0]
    assert pick_group([short, replace(long, patience_s=2.9)], one, LIMIT_S) == [1]


def test_the_patience_of_a_slot_is_a_quarter_of_the_time_to_its_deadline() -> None:
    def patience_s(deadline: float | None) -> float:
        job = SimpleNamespace(deadline=deadline, submitted_at=100.0)
        return Slot(cast(DiffusionJob, job))._patience_s

    assert patience_s(None) == inf
    assert patience_s(120.0) == 5.0


@dataclass
class Work:
    """A picture in a simulation; a step of one row of shape s takes `COSTS[s]` seconds."""

    shape: str
    steps: int
    waited_s: float = 0.0
    done_s: float = 0.0


COSTS = {"a": 1.0, "b": 0.25, "c": 4.0}
SLOTS = 4
Policy = Callable[[Sequence[Work]], list[int]]


def least_left(limit_s: float) -> Policy:
    def policy(works: Sequence[Work]) -> list[int]:
        candidates = [Candidate(w.shape, 1, w.steps * COSTS[w.shape], w.waited_s) for w in works]
        return pick_group(candidates, lambda _: 1, limit_s)

    return policy


def round_robin() -> Policy:
    turns: dict[int, int] = {}

    def policy(works: Sequence[Work]) -> list[int]:
        last = [turns.setdefault(id(work), 0) for work in works]
        picked = last.index(min(last))
        turns[id(works[picked])] = max(turns.values()) + 1
        return [picked]

    return policy


def simulate(queue: Iterator[Work], policy: Policy, until: Work | None = None) -> list[Work]:
    """The finished pictures, in four slots, until none is left or `until` is finished."""
    now, slots, finished = 0.0, list(islice(queue, SLOTS)), list[Work]()
    while slots and (until is None or until.steps):
        picked = policy(slots)
        took = sum(COSTS[slots[i].shape] for i in picked)
        now += took
        assert now < 100_000, "a picture starves"
        for i, work in enumerate(slots):
            work.steps -= i in picked
            work.waited_s += 0 if i in picked else took
            work.done_s = now
        finished += [work for work in slots if not work.steps]
        slots = [work for work in slots if work.steps]
        slots += islice(queue, SLOTS - len(slots))
    return finished


STREAMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 28)), min_size=1, max_size=8)


@given(STREAMS, st.sampled_from("abc"), st.integers(1, 40), st.floats(0, 50))
def test_no_picture_starves_whatever_keeps_arriving(
    stream: list[tuple[str, int]], shape: str, steps: int, limit_s: float
) -> None:
    big = Work(shape, steps)
    others = (Work(*work) for work in cycle(stream))
    simulate(chain([big], others), least_left(limit_s), until=big)
    assert not big.steps
    slowest = max(COSTS.values())
    alone = steps * COSTS[shape]
    # beyond the limit only those with a longer wait go first, and it alternates with each at most
    assert big.waited_s <= limit_s + (SLOTS - 1) * (limit_s + alone + 2 * slowest)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 28)), min_size=1, max_size=SLOTS))
def test_the_mean_wait_is_never_longer_than_with_round_robin(
    works: list[tuple[str, int]],
) -> None:
    ends = []
    for policy in (least_left(inf), round_robin()):
        finished = simulate(iter([Work(*work) for work in works]), policy)
        assert len(finished) == len(works)
        ends.append(sum(work.done_s for work in finished))
    assert ends[0] <= ends[1] + 1e-9


# -- widths ----------------------------------------------------------------------------------------
def test_a_wider_pass_is_taken_only_where_it_saves_time_per_row() -> None:
    seconds = {
        ("large", 1): 0.100, ("large", 2): 0.196, ("large", 3): 0.290, ("large", 4): 0.384,
        ("small", 1): 0.010, ("small", 2): 0.012, ("small", 3): 0.014, ("small", 4): 0.020,
        ("alone", 1): 0.5,
    }  # fmt: skip
    assert best_widths(seconds) == {"large": 1, "small": 3, "alone": 1}
    assert best_widths(seconds, least_gain=0.005) == {"large": 4, "small": 3, "alone": 1}


@given(st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(1, 8)), st.floats(0.01, 9)))
def test_the_width_was_measured_and_no_other_is_quicker_by_more_than_the_gain(
    seconds: dict[tuple[str, int], float],
) -> None:
    found = best_widths(seconds)
    assert found.keys() == {shape for shape, _ in seconds}
    for shape, width in found.items():
        per_row = {rows: took / rows for (s, rows), took in seconds.items() if s == shape}
        assert all(per_row[width] * 0.95 < p for rows, p in per_row.items() if rows > width)
        assert all(per_row[width] < p for rows, p in per_row.items() if rows < width)
