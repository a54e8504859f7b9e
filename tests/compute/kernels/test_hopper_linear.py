"""The tilings of few-row linears on Hopper, and on a card their kernels against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from predictors.compute.kernels import hopper_linear
from predictors.compute.kernels.attention import HOPPER
from predictors.compute.kernels.hopper_linear import (
    BLOCK_K,
    MOST_ROWS,
    SHARED_BYTES,
    STAGE_BYTES,
    Room,
    linear,
    norm,
    tile_for,
)

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER


def on_card(test: Callable[..., None]) -> Callable[..., None]:
    skipped = pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")(test)
    marked: Callable[..., None] = pytest.mark.gpu(skipped)
    return marked


LINEARS = {
    "3B, qkv": (2560, 2048, "bias"), "3B, out": (2048, 2048, "residual"),
    "3B, gate and up": (11008, 2048, "gated"), "3B, down": (2048, 11008, "residual"),
    "7B, qkv": (4608, 3584, "bias"), "7B, out": (3584, 3584, "residual"),
    "7B, gate and up": (18944, 3584, "gated"), "7B, down": (3584, 18944, "residual"),
    "gate and up of an adapted row": (22016, 2048, ""), "head": (151936, 2048, "float"),
    "small": (96, 64, "bias"), "small, gated": (128, 192, "gated"),
    "small, added": (64, 128, "residual"),
}  # fmt: skip
"""Features out and in, and what comes with the product."""


@given(
    rows=st.integers(1, MOST_ROWS),
    width=st.integers(1, 12_000).map(lambda n: 16 * n),
    features=st.integers(1, 512).map(lambda n: BLOCK_K * n),
    parts=st.sampled_from([1, 2]),
    room=st.builds(Room, st.integers(60, 148), st.integers(8, 37)),
)
def test_a_tiling_fits_a_block_and_fills_the_card(
    rows: int, width: int, features: int, parts: int, room: Room
) -> None:
    tile = tile_for(rows, width, features, parts, room)
    assert tile.box >= rows
    assert tile.width % 8 == 0
    assert tile.width <= 256
    assert tile.parts * tile.width <= 320
    assert tile.stages >= 1
    assert tile.shared_bytes <= SHARED_BYTES
    assert (tile.box + parts * tile.width) * BLOCK_K * 2 >= STAGE_BYTES
    at_once = room.clusters if tile.splits > 1 else room.blocks
    tiles = -(-width // tile.width)
    waves = -(-tiles // at_once)
    assert waves == 1 or parts * (tile.width - 8) * at_once * (waves - 1) < parts * width
    assert tile.splits == 1 or parts == 1


def operands(name: str, rows: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x, the weight, and the other arguments of `linear`."""
    assert hopper_linear.is_available()
    torch.manual_seed(rows)
    width, features, kind = LINEARS[name]
    parts = 2 if kind == "gated" else 1
    x = torch.randn(rows, features, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(parts * width, features, device="cuda", dtype=torch.bfloat16)
    weight /= features**0.5
    more: dict[str, Any] = {}
    if kind == "bias":
        more["bias"] = torch.randn(width, device="cuda", dtype=torch.bfloat16)
    if kind == "residual":
        more["residual"] = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    if kind == "gated":
        more["is_gated"] = True
    if kind == "float":
        more["out"] = torch.full((rows, width), float("nan"), device="cuda")
    return x, weight, more


def exact(x: Tensor, weight: Tensor, more: dict[str, Any]) -> Tensor:
    made = torch.cat([x.double() @ part.double().T for part in weight.split(16384)], 1)
    if "is_gated" in more:
        gate, up = made.chunk(2, 1)
        made = torch.nn.functional.silu(gate) * up
    for name in ("bias", "residual"):
        addend = more.get(name)
        if isinstance(addend, Tensor):
            made = made + addend.double()
    return made


@on_card
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 17, 32, 33, 47, 64])
@pytest.mark.parametrize("name", LINEARS)
def test_a_product_is_the_one_in_float64_rounded_once(name: str, rows: int) -> None:
    x, weight, more = operands(name, rows)
    want = exact(x, weight, more)
    found = linear(x, weight, **more)
    assert found.isfinite().all()
    step = 2**-8 if found.dtype == torch.bfloat16 else 2**-14
    assert ((found.double() - want).abs() <= want.abs() * step + 1e-3).all()
    assert (found.double() - want).norm() <= step / 2 * want.norm()


@on_card
@pytest.mark.parametrize("name", LINEARS)
def test_a_rows_bits_do_not_depend_on_the_others(name: str) -> None:
    x, weight, more = operands(name, MOST_ROWS)
    whole = linear(x, weight, **more).clone()
    for first, rows in ((0, 64), (5, 33), (40, 24), (63, 1)):
        part = {
            key: value[first : first + rows].contiguous()
            if isinstance(value, Tensor) and key != "bias"
            else value
            for key, value in more.items()
        }
        some = x[first : first + rows].contiguous()
        found = linear(some, weight, **part)
        assert torch.equal(found, whole[first : first + rows])


@on_card
@pytest.mark.parametrize("name", ["3B, qkv", "3B, gate and up", "7B, down", "small"])
def test_chained_kernels_wait_for_each_other(name: str) -> None:
    """Norm and linear in turn over one buffer, in a graph, beside one after the other."""
    _, weight, more = operands(name, MOST_ROWS)
    features = weight.shape[1]
    more.pop("residual", None)
    inputs = [
        torch.randn(MOST_ROWS, features, device="cuda", dtype=torch.bfloat16) for _ in range(20)
    ]
    part = features // 8 if features > hopper_linear.MOST_FEATURES else features
    scale = torch.ones(part, device="cuda", dtype=torch.bfloat16)

    def step(x: Tensor) -> Tensor:
        shape = (-1, len(scale))
        normed = norm(x.view(shape), scale, 1e-6).view(x.shape)
        return linear(normed, weight, **more)

    want = []
    for x in inputs:
        want.append(step(x).clone())
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [step(x) for x in inputs]
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        for ours, theirs in zip(found, want, strict=True):
            assert torch.equal(ours, theirs)


@on_card
@pytest.mark.parametrize("features", [64, 2048, 3584, 8192])
def test_a_norm_is_the_one_in_float64_rounded_once(features: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(MOST_ROWS, features, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(features, device="cuda", dtype=torch.bfloat16)
    wide = x.double()
    want = wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    found = norm(x, weight, 1e-6).double()
    assert ((found - want).abs() <= want.abs() * 2**-8 + 1e-6).all()
