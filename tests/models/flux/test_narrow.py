"""T5 and the modulation in fp8: scaled by row, quantised as they are read, and off by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.triton_interpreter  # noqa: F401
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.fp8 import E4M3, dequantized, quantize_rows
from predictors.diffusion.request import FP8, ImageParameters
from predictors.models.flux import filling
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.modules.narrow import QuantizingLinear, narrow_t5
from predictors.models.flux.passes import FluxPasses
from predictors.models.flux.weights import Parts, load_parts
from predictors.settings import InvalidSetting
from tests.diffusion.driver import CHECKPOINT, EngineDriver, open_driver
from tests.models.flux.test_text_encoders import some_ids, t5_model

CPU = Placement(torch.device("cpu"), torch.float32, "off")
IMAGE = ImageParameters("a large red circle", num_inference_steps=4, seed=3, tier="high")


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(read_checkpoint(CHECKPOINT)[0], CPU, (FP8,), fp8_conditioning=True)


@pytest.fixture(scope="module")
def wide() -> EngineDriver:
    return open_driver(tiers="high,turbo")


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_linear_is_the_product_of_rows_that_were_rounded_on_both_sides(
    has_bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=has_bias).to(dtype)
    x = torch.randn(2, 3, 48, dtype=dtype) * torch.tensor([1e-3, 1.0, 1e3])[:, None].to(dtype)
    found = QuantizingLinear(layer)(x)
    weight = dequantized(quantize_rows(layer.weight.detach()))
    exact = F.linear(dequantized(quantize_rows(x)), weight)
    assert found.dtype == dtype
    if has_bias:
        exact += layer.bias.detach().float()
    assert distance(found, exact) < 1e-2
    for row in range(0 if has_bias else 3):  # each row by its own scale, however small it is
        assert distance(found[:, row], F.linear(x[:, row], layer.weight)) < 0.1


def test_the_kernel_gives_the_same_rows_in_a_multiple_of_sixteen() -> None:
    from predictors.models.flux.modules.fused import narrow_rows

    x = torch.randn(28, 96)
    found, exact = narrow_rows(x), quantize_rows(x)
    assert found.values.shape == (32, 96)
    assert torch.equal(found.values[:28].float(), exact.values.float())
    assert torch.equal(found.scales[:28], exact.scales)


@torch.inference_mode()
def test_t5_in_fp8_stays_near_its_own_states() -> None:
    exact, model = t5_model()(some_ids()), t5_model()
    narrow_t5(model)
    held = [layer for layer in model.modules() if isinstance(layer, QuantizingLinear)]
    assert len(held) == 3 * 7
    assert not any(isinstance(layer, nn.Linear) for layer in model.encoder.block.modules())
    assert 0.0 < distance(model(some_ids()), exact) < 0.1


def test_weights_quantised_as_they_are_read_are_those_quantised_afterwards(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = load_parts(read_checkpoint(CHECKPOINT)[0], CPU)
    modulation = parts.conditioning.modulation
    exact = quantize_rows(after.conditioning.modulation.weight)
    assert modulation.weight.dtype == E4M3
    assert torch.equal(modulation.weight.float(), exact.values.float())
    assert torch.equal(modulation.weight_scale, exact.scales)
    assert torch.equal(modulation.bias, after.conditioning.modulation.bias)
    for name, layer in parts.t5.named_modules():
        if isinstance(layer, QuantizingLinear):
            exact = quantize_rows(after.t5.get_submodule(name).weight)
            assert torch.equal(layer.weight.float(), exact.values.float())
            assert torch.equal(layer.weight_scale, exact.scales)
    # however many are read at a time
    monkeypatch.setattr(filling, "WIDE_BYTES", 1)
    again = load_parts(read_checkpoint(CHECKPOINT)[0], CPU, (FP8,), fp8_conditioning=True)
    for mine, yours in zip(modules_of(parts), modules_of(again), strict=True):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor.float(), yours.state_dict()[name].float()), name


def modules_of(parts: Parts) -> list[nn.Module]:
    return [*parts.transformers.values(), parts.conditioning, parts.t5]


def test_everything_else_stays_as_it_is(parts: Parts) -> None:
    assert set(parts.transformers) == {FP8}
    for module in (parts.clip, parts.decoder, parts.conditioning.time, parts.conditioning.context):
        assert all(tensor.dtype != E4M3 for tensor in module.state_dict().values())
    assert parts.t5.shared.weight.dtype == torch.float32
    assert parts.t5.shared.weight.data_ptr() == parts.t5.encoder.embed_tokens.weight.data_ptr()


def test_pictures_change_a_little_and_by_nothing_else_than_the_setting(wide: EngineDriver) -> None:
    narrowed = open_driver(tiers="high,turbo", conditioning_precision="fp8")
    exact, found = wide.latents(IMAGE), narrowed.latents(IMAGE)
    assert 0.0 < distance(found, exact) < 0.1
    drawn = wide.draw(IMAGE)
    assert np.array_equal(open_driver(tiers="high,turbo").draw(IMAGE), drawn)
    assert np.array_equal(narrowed.draw(IMAGE), narrowed.draw(IMAGE))
    passes = wide.engine.runner.passes
    assert isinstance(passes, FluxPasses)
    assert isinstance(passes.parts.conditioning.modulation, nn.Linear)


@pytest.mark.parametrize("tiers", ["lossless", "turbo", "lossless,high", "lossless,turbo,high"])
def test_it_is_refused_beside_exact_weights_by_name(tiers: str) -> None:
    with pytest.raises(InvalidSetting, match=r"conditioning_precision is fp8.*flux.tiers are"):
        open_driver(tiers=tiers, conditioning_precision="fp8")


def test_it_goes_with_a_checkpoint_stored_in_fp8(tmp_path: Path) -> None:
    from predictors.models.flux.quantize import quantize_checkpoint

    quantize_checkpoint(CHECKPOINT, tmp_path / "narrow")
    stored = open_driver(tmp_path / "narrow", tiers="high", conditioning_precision="fp8")
    at_load = open_driver(tiers="high", conditioning_precision="fp8")
    assert np.array_equal(stored.draw(IMAGE), at_load.draw(IMAGE))
