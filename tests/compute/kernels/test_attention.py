"""The choice of an attention kernel is accurate and stable between starts."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from predictors import metrics
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.attention import (
    KERNELS,
    AttentionChoice,
    choose_attention,
    fastest,
    sdpa,
)
from predictors.settings import ComputeSettings, InvalidSetting, bounds_of

CPU = Placement(torch.device("cpu"), torch.float32, "off")
CUDA = Placement(torch.device("cuda"), torch.bfloat16, "inductor")


def packed_heads(
    tokens: int, heads: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """Query, key and value (2, heads, tokens, dim) as views of one packed buffer."""
    generator = torch.Generator(device).manual_seed(7)
    packed = torch.randn(2, tokens, 3, heads, dim, generator=generator, device=device, dtype=dtype)
    return packed.transpose(1, 3).unbind(2)


def test_the_result_is_tokens_by_joined_heads() -> None:
    query, key, value = packed_heads(5, 3, 4)
    found = sdpa(query, key, value)
    assert found.shape == (2, 5, 12)
    assert found.is_contiguous()
    weights = (query.double() @ key.double().mT / 2).softmax(-1)
    exact = (weights @ value.double()).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-5)


def test_without_cuda_sdpa_is_chosen() -> None:
    choice = choose_attention(CPU, 3, 4, 5)
    assert (choice.name, choice.attention, choice.milliseconds) == ("sdpa", sdpa, {})


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ({"cudnn": 1.0, "flash": 2.0}, "cudnn"),
        ({"cudnn": 1.0, "flash": 0.96}, "cudnn"),  # noise
        ({"cudnn": 1.0, "flash": 0.94}, "flash"),
        ({"cudnn": 1.0, "flash": 0.96, "efficient": 0.92}, "efficient"),
        ({"cudnn": 1.0, "flash": 0.94, "efficient": 0.92}, "flash"),
        ({"sdpa": 3.0}, "sdpa"),
    ],
)
def test_a_later_kernel_must_be_clearly_faster(times: dict[str, float], name: str) -> None:
    assert fastest(times) == name


def test_the_settings_choices_are_the_kernels() -> None:
    (setting,) = (field for field in fields(ComputeSettings) if field.name == "attention")
    assert bounds_of(setting).choices == ("auto", *KERNELS)


def test_the_choice_is_shown_in_the_metrics() -> None:
    AttentionChoice("cudnn", sdpa, {"cudnn": 0.5, "flash": 1.0}, {}).announce("shown")
    assert metrics.attention_info.labels("shown", "cudnn")._value.get() == 1
    assert metrics.attention_seconds.labels("shown", "flash")._value.get() == 0.001


# -- on a GPU ------------------------------------------------------------------------------------
@pytest.mark.gpu
def test_the_choice_is_accurate_and_stable() -> None:
    choices = [choose_attention(CUDA, 24, 128, 1536) for _ in range(3)]
    assert len({choice.name for choice in choices}) == 1
    assert {"sdpa", choices[0].name} <= set(choices[0].milliseconds)
    assert max(choices[0].errors.values()) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [77, 768, 1000])
def test_every_kernel_that_works_agrees_with_float32(tokens: int) -> None:
    query, key, value = packed_heads(tokens, 4, 64, "cuda", torch.bfloat16)
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    exact = exact.transpose(1, 2).flatten(2)
    for name in choose_attention(CUDA, 4, 64, tokens).milliseconds:
        found = KERNELS[name]()(query, key, value)
        assert found.is_contiguous(), name
        assert (found.float() - exact).norm() / exact.norm() < 0.01, name


@pytest.mark.gpu
def test_a_kernel_that_does_not_work_here_is_refused_when_asked_for() -> None:
    with pytest.raises(InvalidSetting, match="does not work on this device"):
        choose_attention(Placement(torch.device("cuda"), torch.float32, "off"), 4, 64, 64, "flash")
