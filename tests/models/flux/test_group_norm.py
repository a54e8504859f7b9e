"""The kernels of the decoder, in Triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tests.triton_interpreter  # noqa: F401
from predictors.models.flux.modules import group_norm, wide_attention
from predictors.models.flux.modules.decoder import Sum
from predictors.models.flux.modules.group_norm import reference

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

# samples, channels, groups, height, width: odd sizes, channels that are no power of two, one pixel
SIZES = [(1, 48, 16, 7, 9), (2, 32, 32, 5, 3), (1, 96, 32, 1, 1), (2, 128, 32, 13, 11)]


def picture(*size: int, mean: float = 0.0) -> Tensor:
    return (mean + torch.randn(size)).contiguous(memory_format=torch.channels_last)


def make_norm(groups: int, channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.requires_grad_(False)


def exactly(x: Sum, norm: nn.GroupNorm, silu: bool) -> tuple[Tensor, Tensor]:
    wide = nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps, dtype=torch.float64)
    wide.load_state_dict(norm.state_dict())
    doubles = (part if part is None else part.double() for part in x[:3])
    return reference(Sum(*doubles), wide.requires_grad_(False), silu=silu)


def unfolded(y: Tensor) -> Tensor:
    """Four phases on the small grid to one picture, as `fold` says where each value lies."""
    n, _, height, width = y.shape
    phases = y.unflatten(1, (2, 2, -1))
    out = torch.empty(n, phases.shape[3], 2 * height - 2, 2 * width - 2)
    for dy in (0, 1):
        for dx in (0, 1):
            here = phases[:, dy, dx, :, dy : dy + height - 1, dx : dx + width - 1]
            out[:, :, dy::2, dx::2] = here
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("owed", ["nothing", "bias", "residual", "both"])
def test_group_norm_of_a_pending_sum_is_the_norm_in_float64(
    size: tuple[int, int, int, int, int], owed: str
) -> None:
    n, channels, groups, height, width = size
    torch.manual_seed(channels)
    norm = make_norm(groups, channels)
    x = Sum(
        picture(n, channels, height, width),
        torch.randn(channels) if owed in ("bias", "both") else None,
        picture(n, channels, height, width) if owed in ("residual", "both") else None,
    )
    for silu in (True, False):
        total, normed = group_norm.group_norm(x, norm, silu=silu, keep=True)
        exact_total, exact = exactly(x, norm, silu)
        assert torch.allclose(total.double(), exact_total, atol=1e-6)
        assert torch.allclose(normed.double(), exact, atol=2e-5)
        assert normed.is_contiguous(memory_format=torch.channels_last)


def test_a_bias_alone_is_added_by_the_norm_without_a_copy() -> None:
    norm = make_norm(16, 48)
    x = Sum(picture(1, 48, 6, 5), torch.randn(48))
    total, normed = group_norm.group_norm(x, norm, silu=True, keep=False)
    assert total is x.picture
    assert torch.allclose(normed.double(), exactly(x, norm, True)[1], atol=2e-5)


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    norm = make_norm(16, 48).bfloat16()
    x = Sum(picture(1, 48, 9, 9).bfloat16(), torch.randn(48).bfloat16())
    normed = group_norm.group_norm(x, norm, silu=True, keep=False)[1].double()
    exact = exactly(x, norm, True)[1]
    assert (normed - exact).abs().le(exact.abs() * 2**-7.99 + 1e-5).all()


def test_a_large_mean_costs_no_digits() -> None:
    torch.manual_seed(0)
    norm = make_norm(8, 32)
    x = Sum(picture(1, 32, 40, 40, mean=3000.0))
    _, normed = group_norm.group_norm(x, norm, silu=False, keep=False)
    _, exact = exactly(x, norm, False)
    assert torch.allclose(normed.double(), exact, atol=4e-3)  # half an ulp of 3000 is 1e-4
    squares = x.picture.float().pow(2).mean() - x.picture.float().mean().pow(2)
    assert abs(squares - 1) > 0.02, "one pass of squares in float32 would have failed here"


def test_more_tiles_than_chunks_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "TILE", 64)
    monkeypatch.setattr(group_norm, "MAX_CHUNKS", 8)
    norm = make_norm(2, 6)
    x = Sum(picture(1, 6, 30, 17) * torch.linspace(0, 4, 30)[:, None])
    assert group_norm._chunk_pixels(30 * 17, 6) == 64, "eight tiles of eight pixels"
    _, normed = group_norm.group_norm(x, norm, silu=False, keep=False)
    assert torch.allclose(normed.double(), exactly(x, norm, False)[1], atol=1e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_a_folded_picture_is_unfolded_by_the_first_pass(n: int) -> None:
    norm = make_norm(16, 48)
    x = Sum(picture(n, 4 * 48, 4, 6), torch.randn(48), None, is_folded=True)
    total, normed = group_norm.group_norm(x, norm, silu=True, keep=False)
    flat = Sum(unfolded(x.picture), x.bias)
    exact_total, exact = exactly(flat, norm, True)
    assert total.shape == (n, 48, 6, 10)
    assert torch.allclose(total.double(), exact_total, atol=1e-6)
    assert torch.allclose(normed.double(), exact, atol=2e-5)


def test_equal_inputs_give_equal_bits_alone_and_beside_others() -> None:
    norm = make_norm(16, 48)
    x, others = picture(1, 48, 9, 9), picture(2, 48, 9, 9)
    bias = torch.randn(48)
    alone = group_norm.group_norm(Sum(x, bias), norm, silu=True, keep=True)
    again = group_norm.group_norm(Sum(x, bias), norm, silu=True, keep=True)
    together = torch.cat((others, x)).contiguous(memory_format=torch.channels_last)
    beside = group_norm.group_norm(Sum(together, bias), norm, silu=True, keep=True)
    for one, two, three in zip(alone, again, beside, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one[0], three[2])


def test_settling_only_adds_up() -> None:
    x = Sum(picture(2, 48, 5, 7), torch.randn(48), picture(2, 48, 5, 7))
    total = group_norm.add_up(x)
    exact = exactly(x, make_norm(16, 48), False)[0]
    assert torch.allclose(total.double(), exact, atol=1e-6)
    assert total.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tokens", [1, 63, 130])
@pytest.mark.parametrize("chunk", [1 << 30, 64 * 4 * 40])
def test_wide_attention_equals_attention_in_any_chunks(
    tokens: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_attention, "CHUNK_BYTES", chunk)
    torch.manual_seed(tokens)
    monkeypatch.setattr(wide_attention, "BLOCK", 64)
    query, key, value = (torch.randn(2, tokens, 96) for _ in range(3))
    mixed = wide_attention.attend(query, key, value)
    scores = query.double() @ key.double().transpose(1, 2) * 96**-0.5
    exact = scores.softmax(-1) @ value.double()
    assert torch.allclose(mixed.double(), exact, atol=1e-5)
