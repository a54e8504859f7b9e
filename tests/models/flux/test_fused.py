"""The fused operations against the plain ones in float64, in Triton's interpreter; matmuls are the
CPU's own. What only a GPU can show is in `tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tests.triton_interpreter  # noqa: F401
from predictors.compute.kernels.attention import sdpa
from predictors.compute.kernels.fp8 import Fp8Linear, RowScaled, dequantized, quantize_rows
from predictors.models.flux.modules import fused
from predictors.models.flux.modules.fused import Fused, FusedFp8
from predictors.models.flux.modules.operations import (
    Carry,
    Change,
    Norms,
    Plain,
    PlainFp8,
    Streams,
    shared,
)
from predictors.models.flux.modules.rotary import rotary_table
from predictors.models.flux.modules.transformer import EAGER, Shape, Transformer, quantized

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

ROWS, NUM_TEXT, SIDES = 2, 5, (3, 4)
NUM_TOKENS = NUM_TEXT + SIDES[0] * SIDES[1]
# heads that are no power of two, and a width that is none either
SHAPE = Shape(
    num_double=2, num_single=2, num_heads=5, head_dim=32, in_channels=16, out_channels=16,
    text_dim=24, pooled_dim=8, has_guidance=True, rotary_axes=(8, 12, 12),
)  # fmt: skip
FUSED, FUSED_FP8 = Fused(sdpa), FusedFp8(sdpa)


@pytest.fixture(autouse=True)
def the_gpus_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the fused GELU is another GELU, and there are no fp8 matmuls."""
    torch.manual_seed(0)

    def gelu_of(self: Fused, x: Tensor, up: Streams[Any], num_text: int) -> Tensor:
        return F.gelu(self.linear(x, up, num_text), approximate="tanh")

    def fp8(self: Fp8Linear, x: RowScaled, out: Tensor) -> Tensor:
        return out.copy_(self.reference(dequantized(x)))

    monkeypatch.setattr(Fused, "_gelu_of", gelu_of)
    monkeypatch.setattr(Fp8Linear, "forward", fp8)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def modulation(dtype: torch.dtype) -> Tensor:
    return torch.randn(ROWS, 12 * SHAPE.dim).to(dtype)


def parts_of(modulation: Tensor, *numbers: int) -> list[Streams[Tensor]]:
    """Views into one row of modulation, the picture's six before the text's, as a block has."""
    image, text = modulation.unflatten(-1, (2, 6, -1))[:, :, :, None].unbind(1)
    return [Streams(text[:, i], image[:, i]) for i in numbers]


def doubled(parts: Streams[Tensor]) -> Streams[Tensor]:
    return shared(parts.image.double()) if parts.are_one else Streams(*(p.double() for p in parts))


@pytest.mark.parametrize("has_update", [True, False])
@pytest.mark.parametrize("is_one_stream", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_sum_and_norm_are_those_in_float64(
    has_update: bool, is_one_stream: bool, dtype: torch.dtype, bound: float
) -> None:
    gate, shift, scale = parts_of(modulation(dtype), 2, 3, 4)
    if is_one_stream:
        shift, scale = shared(shift.image), shared(scale.image)
    tokens, update = (torch.randn(ROWS, NUM_TOKENS, SHAPE.dim).to(dtype) for _ in range(2))
    owed = (update, gate) if has_update else (None, None)
    exact_owed = (update.double(), doubled(gate)) if has_update else (None, None)
    exact_tokens, exact = Plain().add_and_norm(
        Carry(tokens.double(), *exact_owed), Change(doubled(shift), doubled(scale)), NUM_TEXT
    )
    kept, normed = FUSED.add_and_norm(Carry(tokens.clone(), *owed), Change(shift, scale), NUM_TEXT)
    assert distance(kept, exact_tokens) <= bound
    assert distance(normed, exact) <= 2 * bound


def test_quantised_norm_is_the_references_quantisation_of_the_norm() -> None:
    gate, shift, scale = parts_of(modulation(torch.float32), 2, 3, 4)
    tokens, update = (torch.randn(ROWS, NUM_TOKENS, SHAPE.dim) for _ in range(2))
    change = Change(shift, scale)
    exact = quantize_rows(Plain().add_and_norm(Carry(tokens, update, gate), change, NUM_TEXT)[1])
    _, found = FUSED_FP8.add_and_norm(Carry(tokens.clone(), update, gate), change, NUM_TEXT)
    assert torch.allclose(found.scales, exact.scales, rtol=1e-6)
    differ = (found.values.float() != exact.values.float()).float().mean()
    assert differ < 1e-3  # a last bit of the norm may round the other way
    assert distance(dequantized(found), dequantized(exact)) < 3e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_heads_are_normed_and_rotated_as_in_float64(dtype: torch.dtype, bound: float) -> None:
    heads, half = 5, 16
    norms = [torch.nn.RMSNorm(2 * half, eps=1e-6, dtype=dtype) for _ in range(4)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight).requires_grad_(False)
    both = Streams(Norms(*norms[:2]), Norms(*norms[2:]))
    qkv = torch.randn(ROWS, NUM_TOKENS, 3 * heads * 2 * half).to(dtype)
    rotary = rotary_table(NUM_TEXT, *SIDES, SHAPE.rotary_axes)
    found = FUSED.attend(qkv.clone(), both, rotary, NUM_TEXT)
    wide = [torch.nn.RMSNorm(2 * half, eps=1e-6, dtype=torch.float64) for _ in range(4)]
    for norm, narrow in zip(wide, norms, strict=True):
        norm.load_state_dict(narrow.state_dict())
    exact_norms = Streams(Norms(*wide[:2]), Norms(*wide[2:]))
    with torch.no_grad():
        exact = Plain().attend(qkv.double(), exact_norms, rotary.double(), NUM_TEXT)
    assert distance(found, exact) <= bound


def test_narrow_heads_are_the_normed_and_rotated_ones_and_the_value_in_e4m3() -> None:
    heads, half = 5, 16
    norms = [torch.nn.RMSNorm(2 * half, eps=1e-6).requires_grad_(False) for _ in range(4)]
    both = Streams(Norms(*norms[:2]), Norms(*norms[2:]))
    qkv = 300 * torch.randn(ROWS, NUM_TOKENS, 3 * heads * 2 * half)  # a value may be out of range
    rotary = rotary_table(NUM_TEXT, *SIDES, SHAPE.rotary_axes)
    seen: list[Tensor] = []

    def attend(*narrow: Tensor) -> Tensor:
        seen.extend(narrow)
        return torch.zeros(1)

    FusedFp8(sdpa, attend).attend(qkv.clone(), both, rotary, NUM_TEXT)
    exact = fused._normed_heads(qkv, None, both, rotary, NUM_TEXT).unbind(2)
    for narrow, wide in zip(seen, exact, strict=True):
        assert narrow.shape == (ROWS, NUM_TOKENS, heads, 2 * half)
        expected = wide.clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(narrow.float(), expected.float())


@pytest.mark.parametrize(("num_mixed", "num_wide"), [(160, 0), (0, 640), (160, 640)])
def test_rows_side_by_side_are_quantised_with_one_scale(num_mixed: int, num_wide: int) -> None:
    mixed = torch.randn(ROWS, NUM_TOKENS, num_mixed) if num_mixed else None
    wide = 3 * torch.randn(ROWS, NUM_TOKENS, num_wide) if num_wide else None
    found = fused._gelu_rows(mixed, wide)
    halves = [] if mixed is None else [mixed.double()]
    halves += [] if wide is None else [F.gelu(wide.double(), approximate="tanh")]
    exact = torch.cat(halves, dim=-1)
    assert found.scales.shape == (ROWS, NUM_TOKENS, 1)
    assert torch.allclose(found.scales[..., 0].double(), exact.abs().amax(-1) / 448, rtol=1e-5)
    assert distance(dequantized(found), exact) < 0.04  # e4m3 keeps four bits
    assert distance(dequantized(found), dequantized(quantize_rows(exact))) < 5e-3


def test_a_row_of_zeros_stays_zeros() -> None:
    found = fused._gelu_rows(torch.zeros(1, 2, 32), None)
    assert not dequantized(found).any()
    assert found.scales.isfinite().all()


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(ROWS, NUM_TOKENS - NUM_TEXT, SHAPE.in_channels).to(dtype),
        torch.randn(ROWS, NUM_TEXT, SHAPE.dim).to(dtype),
        0.3 * torch.randn(ROWS, SHAPE.modulation_dim).to(dtype),
        rotary_table(NUM_TEXT, *SIDES, SHAPE.rotary_axes),
    )


def model(dtype: torch.dtype) -> Transformer:
    return Transformer(SHAPE).to(dtype).eval().requires_grad_(False)


@torch.inference_mode()
def test_the_whole_transformer_equals_the_one_in_float64() -> None:
    transformer, given = model(torch.float32), inputs(torch.float32)
    wide = Transformer(SHAPE).double().requires_grad_(False)
    wide.load_state_dict(transformer.state_dict())
    exact = wide(Plain(), EAGER, *(x.double() for x in given))
    assert distance(transformer(Plain(), EAGER, *given), exact) < 1e-6
    assert distance(transformer(FUSED, EAGER, *given), exact) < 1e-6


@torch.inference_mode()
def test_the_whole_fp8_transformer_is_as_close_as_the_plain_one() -> None:
    transformer, given = model(torch.float32), inputs(torch.float32)
    exact = transformer(Plain(), EAGER, *given)
    narrow = quantized(transformer, keep=True)
    plain = distance(narrow(PlainFp8(), EAGER, *given), exact)
    ours = distance(narrow(FUSED_FP8, EAGER, *given), exact)
    assert 0.001 < ours < 1.2 * plain
    assert plain < 0.1


@torch.inference_mode()
@pytest.mark.parametrize("make", [lambda: FUSED, Plain])
def test_a_row_does_not_depend_on_the_others(make: Callable[[], Plain]) -> None:
    transformer, given = model(torch.float32), inputs(torch.float32)
    latents, context, change, rotary = given
    both = transformer(make(), EAGER, *given)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = transformer(make(), EAGER, latents[one], context[one], change[one], rotary)
        assert distance(both[one], alone) < 1e-6


def test_quantising_frees_or_keeps_the_first_module() -> None:
    kept = model(torch.float32)
    twin = quantized(kept, keep=True)
    assert isinstance(kept.double_blocks[0].image.qkv, torch.nn.Linear)
    assert isinstance(twin.double_blocks[0].image.qkv, Fp8Linear)
    assert twin.ends is kept.ends
    assert not any(tensor.is_meta for tensor in twin.state_dict().values())
    replaced = quantized(kept, keep=False)
    assert replaced is kept
    assert isinstance(kept.single_blocks[0].out, Fp8Linear)
    assert isinstance(kept.ends.project, torch.nn.Linear)
