"""The fused operations with adapters against the plain ones in float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from predictors.compute.kernels.attention import sdpa
from predictors.compute.low_rank import LinearSizes, LowRank, LowRankTable, RankRows
from predictors.models.flux.modules import adapted_fused
from predictors.models.flux.modules.adapted import AdaptedPlain, AdaptedPlainFp8, Adapters
from predictors.models.flux.modules.adapted_fused import AdaptedFused, AdaptedFusedFp8
from predictors.models.flux.modules.operations import Streams, shared
from predictors.models.flux.modules.rotary import rotary_table
from predictors.models.flux.modules.transformer import EAGER, Shape, Transformer, quantized
from tests.models.flux.test_fused import (
    FUSED,
    NUM_TEXT,
    NUM_TOKENS,
    ROWS,
    SIDES,
    distance,
    the_gpus_matmuls,
)

__all__ = ["the_gpus_matmuls"]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

# one block of each kind: the interpreter is slow
SHAPE = Shape(
    num_double=1, num_single=1, num_heads=3, head_dim=32, in_channels=16, out_channels=16,
    text_dim=24, pooled_dim=8, has_guidance=True, rotary_axes=(8, 12, 12),
)  # fmt: skip
CPU = torch.device("cpu")
NUM_ROWS, WIDTH = 24, 16
PLACES = ((3, 9), (20, 1, 7))
"""Rank rows of two adapters."""


def random_tables(transformer: Transformer) -> dict[str, LowRankTable]:
    """Both adapters change every linear, but the second one changes no MLP."""
    torch.manual_seed(1)
    found = {}
    for path, layer in transformer.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        features, features_in = layer.weight.shape
        parts = (features // 3,) * 3 if path.endswith("qkv") else (features,)
        table = LowRankTable(LinearSizes(features_in, parts), NUM_ROWS, CPU, torch.float64)
        for number, rows in enumerate(PLACES):
            changes = {
                part: LowRank(
                    torch.randn(len(rows), features_in, dtype=torch.float64),
                    0.03 * torch.randn(own, len(rows), dtype=torch.float64),
                )
                for part, own in enumerate(parts)
                if part != 1  # not every part
            }
            is_mlp = path.rpartition(".")[2] in ("up", "down")
            table.write(torch.tensor(rows), {} if number and is_mlp else changes)
        found[path] = table
    return found


def in_dtype(tables: dict[str, LowRankTable], dtype: torch.dtype) -> dict[str, LowRankTable]:
    found = {}
    for path, table in tables.items():
        own = LowRankTable(table.sizes, NUM_ROWS, CPU, dtype)
        for name in ("down", "up", "used"):
            getattr(own, name).copy_(getattr(table, name))
        found[path] = own
    return found


def chosen(*mixes: dict[int, float]) -> RankRows:
    index, scales = (
        torch.zeros(len(mixes), WIDTH, dtype=torch.int64),
        torch.zeros(len(mixes), WIDTH),
    )
    for i, mix in enumerate(mixes):
        own = [(row, scale) for number, scale in mix.items() for row in PLACES[number]]
        for j, (row, scale) in enumerate(own):
            index[i, j], scales[i, j] = row, scale
    return RankRows(index, scales)


def adapters(transformer: Transformer, tables: dict[str, LowRankTable], rows: RankRows) -> Adapters:
    return Adapters({transformer.get_submodule(path): t for path, t in tables.items()}, rows)


MIXES = ({0: 0.7, 1: -0.5}, {1: 1.0})


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(ROWS, NUM_TOKENS - NUM_TEXT, SHAPE.in_channels),
        torch.randn(ROWS, NUM_TEXT, SHAPE.dim),
        0.3 * torch.randn(ROWS, SHAPE.modulation_dim),
        rotary_table(NUM_TEXT, *SIDES, SHAPE.rotary_axes),
    )


@torch.inference_mode()
def test_the_whole_adapted_transformer_equals_the_one_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapted_fused, "CHUNK", SHAPE.dim)  # sums over the MLP are split
    transformer, given = Transformer(SHAPE).requires_grad_(False), inputs()
    wide = Transformer(SHAPE).double().requires_grad_(False)
    wide.load_state_dict(transformer.state_dict())
    exact_tables, rows = random_tables(wide), chosen(*MIXES)
    tables = in_dtype(exact_tables, torch.float32)
    doubled = (x.double() for x in given)
    exact = wide(AdaptedPlain(adapters(wide, exact_tables, rows)), EAGER, *doubled)
    plain = AdaptedPlain(adapters(transformer, tables, rows))
    fused = AdaptedFused(sdpa, adapters(transformer, tables, rows))
    assert distance(transformer(plain, EAGER, *given), exact) < 1e-6
    assert distance(transformer(fused, EAGER, *given), exact) < 1e-6
    assert distance(transformer(FUSED, EAGER, *given), exact) > 0.01


@torch.inference_mode()
def test_the_whole_adapted_fp8_transformer_is_as_close_as_the_plain_one() -> None:
    transformer, given = Transformer(SHAPE).requires_grad_(False), inputs()
    narrow = quantized(transformer, keep=True)
    tables, rows = in_dtype(random_tables(transformer), torch.float32), chosen(*MIXES)
    plain_ops = AdaptedPlain(adapters(transformer, tables, rows))
    exact = transformer(plain_ops, EAGER, *given)
    own = adapters(narrow, tables, rows)
    plain = distance(narrow(AdaptedPlainFp8(own), EAGER, *given), exact)
    ours = distance(narrow(AdaptedFusedFp8(sdpa, None, own), EAGER, *given), exact)
    assert 0.001 < ours < 1.2 * plain
    assert plain < 0.1


@torch.inference_mode()
@pytest.mark.parametrize("is_changed", [True, False])
def test_gelu_follows_the_low_rank_part_also_where_nothing_changes(is_changed: bool) -> None:
    linear = torch.nn.Linear(40, 24)
    table = LowRankTable(LinearSizes(40, (24,)), NUM_ROWS, CPU, torch.float32)
    if is_changed:
        table.write(torch.tensor([3]), {0: LowRank(torch.randn(1, 40), torch.randn(24, 1))})
    x = 3 * torch.randn(1, 70, 40)  # more than a tile of tokens
    one = RankRows(torch.tensor([[3] + [0] * 15]), torch.tensor([[0.5] + [0.0] * 15]))
    ops = AdaptedFused(sdpa, Adapters({linear: table}, one))
    weight = linear.weight + 0.5 * table.up[3][:, None] @ table.down[0, 3][None]
    exact = F.gelu(F.linear(x, weight, linear.bias), approximate="tanh")
    assert distance(ops._gelu_of(x, shared(linear), 0), exact) < 1e-6


@torch.inference_mode()
def test_each_stream_has_its_own_table_and_no_tile_has_both() -> None:
    text, image = torch.nn.Linear(16, 24), torch.nn.Linear(16, 24)
    tables = {}
    for layer in (text, image):
        tables[layer] = LowRankTable(LinearSizes(16, (24,)), NUM_ROWS, CPU, torch.float32)
        tables[layer].write(torch.tensor([5]), {0: LowRank(torch.randn(1, 16), torch.randn(24, 1))})
    x = torch.randn(2, 67 + 70, 16)
    rows = RankRows(torch.full((2, 16), 0), torch.ones(2, 16))
    rows.index[1, 0] = 5
    layers = Streams(text, image)
    found = AdaptedFused(sdpa, Adapters(tables, rows)).linear(x, layers, 67)
    assert torch.equal(found[0], FUSED.linear(x, layers, 67)[0])  # it has none
    one = RankRows(rows.index[1:], rows.scales[1:])
    assert torch.equal(
        AdaptedFused(sdpa, Adapters(tables, one)).linear(x[1:], layers, 67)[0], found[1]
    )
    exact = AdaptedPlain(Adapters(tables, rows)).linear(x, layers, 67)
    assert distance(found, exact) < 1e-6
    assert distance(found[1], FUSED.linear(x, layers, 67)[1]) > 0.1


@pytest.mark.parametrize(
    ("first", "second", "chunk"),
    [(3072, 0, 3072), (12288, 0, 4096), (15360, 0, 3840), (3072, 12288, 3072), (64, 0, 64)],
)
def test_sums_are_split_where_both_pieces_of_an_input_are(
    first: int, second: int, chunk: int
) -> None:
    assert adapted_fused._chunk(first, second) == chunk
