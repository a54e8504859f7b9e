"""fp8 linears of a decode step at the sizes of 3B and 7B, on the card."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import values_of
from predictors.compute.kernels.fp8 import Fp8Linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAYERS = {
    "3B, qkv": (2560, 2048), "3B, out": (2048, 2048), "3B, down": (2048, 11008),
    "7B, qkv": (4608, 3584), "7B, out": (3584, 3584), "7B, down": (3584, 18944),
}  # fmt: skip
"""Features out and in."""


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [2, 16, 17, 48, 64])
def test_every_width_of_a_decode_step_is_near_the_product_in_float64(name: str, rows: int) -> None:
    """By the kernel for few rows, and by cuBLAS over quantised rows, as short prompts are."""
    from predictors.chat.decoder.few_rows import SplitScratch, few_rows
    from predictors.chat.decoder.fused_linears import RowsLinears

    torch.manual_seed(rows)
    width, features = LAYERS[name]
    plain = nn.Linear(features, width, bias=False, device="cuda", dtype=torch.bfloat16)
    layer = Fp8Linear.of(plain.requires_grad_(False))
    x = torch.randn(rows, features, device="cuda", dtype=torch.bfloat16)
    stream = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    weight = layer.weight.double() * layer.weight_scale.double()
    exact = stream.double() + x.double() @ weight.T
    scratch = SplitScratch.of(torch.device("cuda"))
    scratch.partial.fill_(float("nan"))
    found = few_rows(x, layer, scratch, residual=stream.clone())
    again = few_rows(x, layer, scratch, residual=stream.clone())
    assert torch.equal(found, again)
    assert not scratch.arrivals.any()
    assert (found.double() - exact).norm() < 4e-3 * exact.norm()
    norm = RMSNorm(width, 1e-6).cuda()
    quantised = values_of(RowsLinears().added_linear(stream.clone(), x, layer, norm))
    assert (quantised.double() - exact).norm() < 0.04 * exact.norm()
