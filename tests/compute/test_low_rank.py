"""Tables of rank rows: what is written is what is added, whichever rows share the pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from predictors.compute.low_rank import (
    LinearSizes,
    LowRank,
    LowRankTable,
    RankPool,
    RankRows,
    add_low_rank,
    check_change,
)
from predictors.errors import InvalidRequest

SIZES = LinearSizes(12, (5, 3, 8))
CPU = torch.device("cpu")
ROWS = {"a": (1, 4), "b": (3,)}


def change(part: int, rank: int) -> LowRank:
    return LowRank(torch.randn(rank, 12), torch.randn(SIZES.part_features[part], rank))


@pytest.fixture(scope="module")
def changes() -> dict[str, dict[int, LowRank]]:
    torch.manual_seed(0)
    return {"a": {0: change(0, 2), 2: change(2, 1)}, "b": {1: change(1, 1)}}


@pytest.fixture(scope="module")
def table(changes: dict[str, dict[int, LowRank]]) -> LowRankTable:
    table = LowRankTable(SIZES, 6, CPU, torch.float32)
    for name, rows in ROWS.items():
        table.write(torch.tensor(rows), changes[name])
    return table


def chosen(*scales: dict[str, float]) -> RankRows:
    """A row of a pass per argument: its adapters' scales."""
    index, factors = torch.zeros(len(scales), 4, dtype=torch.int64), torch.zeros(len(scales), 4)
    for i, row in enumerate(scales):
        places = [(place, scale) for name, scale in row.items() for place in ROWS[name]]
        for j, (place, scale) in enumerate(places):
            index[i, j], factors[i, j] = place, scale
    return RankRows(index, factors)


def by_hand(x: Tensor, changes: dict[str, dict[int, LowRank]], scales: dict[str, float]) -> Tensor:
    out = torch.zeros(*x.shape[:-1], 16)
    for name, scale in scales.items():
        for part, one in changes[name].items():
            begin = sum(SIZES.part_features[:part])
            place = out[..., begin : begin + SIZES.part_features[part]]
            place += scale * (x @ one.down.T @ one.up.T)
    return out


MIX: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": -2.0}, {"a": 0.5, "b": 0.5}]


def test_each_row_gets_the_sum_of_its_own_adapters(
    table: LowRankTable, changes: dict[str, dict[int, LowRank]]
) -> None:
    x, out = torch.randn(4, 7, 12), torch.randn(4, 7, 16)
    before = out.clone()
    add_low_rank(out, x, table, chosen(*MIX))
    for i, scales in enumerate(MIX):
        torch.testing.assert_close(out[i], before[i] + by_hand(x[i], changes, scales))


def test_a_row_has_the_bits_that_it_has_alone_and_a_row_without_adapters_those_it_had(
    table: LowRankTable,
) -> None:
    x, out = torch.randn(4, 33, 12), torch.randn(4, 33, 16)
    before = out.clone()
    add_low_rank(out, x, table, chosen(*MIX))
    assert torch.equal(out[0], before[0])
    for i, scales in enumerate(MIX):
        alone = before[i : i + 1].clone()
        add_low_rank(alone, x[i : i + 1], table, chosen(scales))
        assert torch.equal(alone[0], out[i])


def test_views_of_a_wider_buffer_are_changed_in_place(
    table: LowRankTable, changes: dict[str, dict[int, LowRank]]
) -> None:
    wide, x = torch.zeros(2, 9, 16), torch.randn(2, 9, 12)
    add_low_rank(wide[:, 4:], x[:, 4:], table, chosen(MIX[1], MIX[3]))
    assert not wide[:, :4].any()
    torch.testing.assert_close(wide[1, 4:], by_hand(x[1, 4:], changes, MIX[3]))


def test_token_scales_are_factors_of_the_input(table: LowRankTable) -> None:
    x, factors = torch.randn(2, 7, 12), torch.rand(2, 7, 1) + 0.5
    scaled, whole = torch.zeros(2, 7, 16), torch.zeros(2, 7, 16)
    add_low_rank(scaled, x, table, chosen(MIX[1], MIX[2]), factors)
    add_low_rank(whole, x * factors, table, chosen(MIX[1], MIX[2]))
    torch.testing.assert_close(scaled, whole)


def test_writing_clears_what_the_adapter_does_not_change(
    changes: dict[str, dict[int, LowRank]],
) -> None:
    table = LowRankTable(SIZES, 6, CPU, torch.float32)
    table.write(torch.tensor((1, 4)), changes["a"])
    table.write(torch.tensor((4, 1)), changes["b"])
    assert not table.down[0].any()
    assert not table.down[2].any()
    assert torch.equal(table.down[1, 4], changes["b"][1].down[0])
    assert not table.down[:, 0].any()


def test_a_pool_gives_out_each_row_once_and_says_both_numbers_when_it_is_full() -> None:
    pool = RankPool(6)
    first, second = pool.take("a", 2), pool.take("b", 2)
    assert len({0, *first, *second}) == 5
    with pytest.raises(InvalidRequest, match=r"adapter c has rank 2, but 1 of the 5"):
        pool.take("c", 2)
    pool.give_back(first)
    assert set(pool.take("c", 3)) | set(second) == {1, 2, 3, 4, 5}


def test_a_change_that_does_not_fit_is_refused_by_name() -> None:
    one = change(0, 2)
    check_change("attn.to_q", one, 12, 5)
    with pytest.raises(InvalidRequest, match=r"^attn.to_q changes 12 features to 5 .* 12 to 6"):
        check_change("attn.to_q", one, 12, 6)
    with pytest.raises(InvalidRequest, match=r"^attn.to_q holds values that are not finite"):
        check_change("attn.to_q", LowRank(one.down, one.up / 0), 12, 5)


def test_an_input_may_come_in_pieces(
    table: LowRankTable, changes: dict[str, dict[int, LowRank]]
) -> None:
    x, out = torch.randn(2, 7, 12), torch.zeros(2, 7, 16)
    add_low_rank(out, (x[..., :5], x[..., 5:]), table, chosen(MIX[3], MIX[0]))
    torch.testing.assert_close(out[0], by_hand(x[0], changes, MIX[3]))
    assert not out[1].any()
