"""Few-row linears on Hopper with the norms between them, against float64. On a card."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from predictors.compute.kernels import hopper_linear
from predictors.compute.kernels.attention import HOPPER
from predictors.compute.kernels.hopper_linear import (
    Weighted,
    added_linear,
    norm,
    normed_linear,
    weighted,
)
from predictors.compute.kernels.hopper_tiling import MOST_ROWS, stream_tiles

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")]
poisoned = pytest.mark.usefixtures("poison")

EPS = 1e-6
NORMED = {
    "3B, qkv": (2560, 2048, "bias"), "3B, gate and up": (11008, 2048, "gated"),
    "7B, qkv": (4608, 3584, "bias"), "7B, gate and up": (18944, 3584, "gated"),
    "VL 2B, qkv": (4096, 2048, ""), "VL 2B, gate and up": (6144, 2048, "gated"),
    "VL 4B, qkv": (6144, 2560, ""), "VL 4B, gate and up": (9728, 2560, "gated"),
    "VL 8B, qkv": (6144, 4096, ""), "VL 8B, gate and up": (12288, 4096, "gated"),
    "gate and up of an adapted row": (22016, 2048, ""), "head": (151936, 2048, "float"),
    "small": (96, 64, "bias"), "small, gated": (128, 192, "gated"), "widest": (1024, 8192, ""),
}  # fmt: skip
"""Features out and in, and what comes with the product."""
ADDED = {
    "3B, out": (2048, 2048), "3B, down": (2048, 11008), "7B, out": (3584, 3584),
    "7B, down": (3584, 18944), "VL 2B, down": (2048, 6144), "VL 4B, out": (2560, 4096),
    "VL 4B, down": (2560, 9728), "VL 8B, out": (4096, 4096), "VL 8B, down": (4096, 12288),
    "small": (64, 128), "small, two tiles": (96, 64), "widest": (8192, 512),
}  # fmt: skip
"""Features out and in."""
ROWS = [1, 2, 8, 9, 17, 32, 33, 47, 64]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory for a weighted stream is filled with NaN."""
    empty = hopper_linear._empty_weighted

    def filled(stream: Tensor) -> tuple[Weighted, int]:
        made, tiles = empty(stream)
        made.values.fill_(float("nan"))
        made.squares.fill_(float("nan"))
        return made, tiles

    monkeypatch.setattr(hopper_linear, "_empty_weighted", filled)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(torch.bfloat16)


def weights(width: int, features: int) -> Tensor:
    """Products with them are about as large as what is multiplied."""
    return normal(width, features, scale=features**-0.5)


def squares(x: Weighted) -> Tensor:
    """The sums that are set, (rows, tiles)."""
    _, tiles = stream_tiles(x.values.shape[1], hopper_linear._room())
    return x.squares[:, :tiles]


def assert_same(one: Weighted, other: Weighted) -> None:
    assert torch.equal(one.values, other.values)
    assert torch.equal(squares(one), squares(other))


class Normed(NamedTuple):
    """The arguments of `normed_linear`, but for eps."""

    stream: Tensor
    norm: Tensor
    weight: Tensor
    bias: Tensor | None
    is_gated: bool
    is_float: bool

    @classmethod
    def of(cls, name: str, rows: int) -> Normed:
        torch.manual_seed(rows)
        width, features, kind = NORMED[name]
        stream, gains = normal(rows, features, scale=3), normal(features)
        weight = weights((1 + (kind == "gated")) * width, features)
        bias = normal(width) if kind == "bias" else None
        return cls(stream, gains, weight, bias, kind == "gated", kind == "float")

    def multiplied(self, first: int = 0, rows: int = MOST_ROWS) -> Tensor:
        """Of these rows of the stream, by the kernels."""
        x = weighted(self.stream[first : first + rows].contiguous(), self.norm)
        width = len(self.weight) // (1 + self.is_gated)
        dtype = torch.float32 if self.is_float else torch.bfloat16
        out = torch.full((len(x.values), width), float("nan"), dtype=dtype, device="cuda")
        more = {"bias": self.bias, "is_gated": self.is_gated, "out": out}
        assert normed_linear(x, EPS, self.weight, **more) is out  # type: ignore[arg-type]
        return out

    def exact(self) -> Tensor:
        """In float64, but for the rounding of stream times norm."""
        stream = self.stream.double()
        x = (stream * self.norm.double()).to(torch.bfloat16).double()
        x = x * (stream.square().mean(1, keepdim=True) + EPS).rsqrt()
        made = torch.cat([x @ part.double().T for part in self.weight.split(16384)], 1)
        if self.is_gated:
            gate, up = made.chunk(2, 1)
            made = torch.nn.functional.silu(gate) * up
        return made if self.bias is None else made + self.bias.double()


def assert_rounded_once(found: Tensor, want: Tensor) -> None:
    assert found.isfinite().all()
    step = 2**-8 if found.dtype == torch.bfloat16 else 2**-14
    assert ((found.double() - want).abs() <= want.abs() * step + 1e-3).all()
    assert (found.double() - want).norm() <= 0.6 * step * want.norm()


@poisoned
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", NORMED)
def test_a_product_behind_a_norm_is_the_one_in_float64_rounded_once(name: str, rows: int) -> None:
    case = Normed.of(name, rows)
    assert_rounded_once(case.multiplied(), case.exact())


@poisoned
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ADDED)
def test_a_sum_is_the_one_in_float64_rounded_once_and_comes_weighted(name: str, rows: int) -> None:
    torch.manual_seed(rows)
    width, features = ADDED[name]
    x, weight, gains = normal(rows, features), weights(width, features), normal(width)
    stream = normal(rows, width, scale=3)
    want = stream.double() + x.double() @ weight.double().T
    found = added_linear(x, weight, stream, gains)
    assert_rounded_once(stream, want)
    assert torch.equal(found.values, (stream.float() * gains.float()).to(torch.bfloat16))
    tile, _ = stream_tiles(width, hopper_linear._room())
    sums = [part.double().square().sum(1) for part in stream.split(tile, 1)]
    assert torch.allclose(squares(found).double(), torch.stack(sums, 1), rtol=2e-6, atol=0)
    assert_same(found, weighted(stream, gains))


@poisoned
@pytest.mark.parametrize("name", NORMED)
def test_a_rows_bits_behind_a_norm_do_not_depend_on_the_others(name: str) -> None:
    case = Normed.of(name, MOST_ROWS)
    whole = case.multiplied()
    for first, rows in ((0, 64), (5, 33), (40, 24), (7, 8), (62, 2), (63, 1)):
        assert torch.equal(case.multiplied(first, rows), whole[first : first + rows])


@poisoned
@pytest.mark.parametrize("name", ADDED)
def test_a_rows_bits_in_a_sum_do_not_depend_on_the_others(name: str) -> None:
    torch.manual_seed(0)
    width, features = ADDED[name]
    x, weight, gains = normal(MOST_ROWS, features), weights(width, features), normal(width)
    stream = normal(MOST_ROWS, width, scale=3)
    whole = stream.clone()
    together = added_linear(x, weight, whole, gains)
    for first, rows in ((0, 64), (5, 33), (40, 24), (7, 8), (62, 2), (63, 1)):
        these = slice(first, first + rows)
        some = stream[these].clone()
        alone = added_linear(x[these].contiguous(), weight, some, gains)
        assert torch.equal(some, whole[these])
        assert_same(alone, Weighted(together.values[these], together.squares[these]))


@poisoned
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 64])
@pytest.mark.parametrize("hidden", [2048, 3584, 2560, 4096])
def test_a_layers_second_half_is_near_the_one_in_float64(hidden: int, rows: int) -> None:
    """out, the norm behind it, gate and up, down: each rounds to bfloat16, 2^-9 of a value."""
    torch.manual_seed(rows)
    mlp = 3 * hidden
    x, stream, gains = normal(rows, hidden), normal(rows, hidden, scale=3), normal(hidden)
    out, gate_up, down = weights(hidden, hidden), weights(2 * mlp, hidden), weights(hidden, mlp)
    want = stream.double() + x.double() @ out.double().T
    normed = want * (want.square().mean(1, keepdim=True) + EPS).rsqrt() * gains.double()
    gate, up = (normed @ gate_up.double().T).chunk(2, 1)
    want = want + (torch.nn.functional.silu(gate) * up) @ down.double().T
    first = added_linear(x, out, stream, gains)
    wide = normed_linear(first, EPS, gate_up, is_gated=True)
    added_linear(wide, down, stream, gains)
    assert stream.isfinite().all()
    assert (stream.double() - want).norm() <= 4e-3 * want.norm()


def layers_of(hidden: int, count: int) -> list[tuple[Tensor, ...]]:
    """Two norms, and the weights of qkv (as wide as a stream), out, gate and up, down."""
    mlp = 2 * hidden
    shapes = (hidden, hidden), (hidden, hidden), (2 * mlp, hidden), (hidden, mlp)
    return [
        (normal(hidden), normal(hidden), *(weights(*shape) for shape in shapes))
        for _ in range(count)
    ]


@pytest.mark.parametrize("rows", [2, 33, 64])
@pytest.mark.parametrize("hidden", [2048, 3584])
def test_chained_kernels_wait_for_each_other(hidden: int, rows: int) -> None:
    """Layers in a graph, beside the same kernels one after the other. Nothing else is between."""
    torch.manual_seed(0)
    start, layers = normal(rows, hidden), layers_of(hidden, 6)

    def run(after_each: Callable[[], None]) -> Tensor:
        stream = start.clone()
        x = weighted(stream, layers[0][0])
        for i, (_, second, qkv, out, gate_up, down) in enumerate(layers):
            following = layers[(i + 1) % len(layers)][0]
            heads = normed_linear(x, EPS, qkv)
            after_each()
            x = added_linear(heads, out, stream, second)
            after_each()
            wide = normed_linear(x, EPS, gate_up, is_gated=True)
            after_each()
            x = added_linear(wide, down, stream, following)
            after_each()
        return torch.cat((stream, normed_linear(x, EPS, layers[0][2])))

    want = run(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(lambda: None)
    for _ in range(20):
        found.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert want.isfinite().all()
        assert torch.equal(found, want)


@pytest.mark.parametrize("features", [64, 2048, 3584, 8192])
def test_a_norm_is_the_one_in_float64_rounded_once(features: int) -> None:
    torch.manual_seed(0)
    x, weight = normal(MOST_ROWS, features), normal(features)
    wide = x.double()
    want = wide * (wide.square().mean(1, keepdim=True) + EPS).rsqrt() * weight.double()
    found = norm(x, weight, EPS).double()
    assert ((found - want).abs() <= want.abs() * 2**-8 + 1e-6).all()
