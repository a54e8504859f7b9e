"""Which pixels a server reads of a picture, from what it allows and what a caller asks for."""

from __future__ import annotations

import pytest

from predictors.chat.pixel_bounds import LOW_DETAIL_PIXELS, PixelBounds, PixelLimits
from predictors.errors import InvalidRequest

LIMITS = PixelLimits(3136, 4_000_000, 1_000_000, 784)


@pytest.mark.parametrize(
    ("least", "most", "bounds"),
    [
        (None, 784, None),
        (None, 3136, (3136, 3136)),
        (None, 4_000_000, (3136, 4_000_000)),
        (1, None, (1, 1_000_000)),
        (1_000_000, None, (1_000_000, 1_000_000)),
        (1, 784, (1, 784)),
        (4_000_000, 4_000_000, (4_000_000, 4_000_000)),
    ],
)
def test_a_caller_chooses_within_what_the_server_reads(
    least: int | None, most: int | None, bounds: tuple[int, int] | None
) -> None:
    if bounds is None:
        with pytest.raises(InvalidRequest, match="min_pixels 3136 of this server is above max_pix"):
            LIMITS.choose(least, most)
    else:
        assert LIMITS.choose(least, most) == PixelBounds(*bounds)


def test_a_caller_who_asks_for_nothing_gets_the_default() -> None:
    assert LIMITS.choose(None, None) is None
    assert LIMITS.default == PixelBounds(3136, 1_000_000)


@pytest.mark.parametrize(
    ("least", "most", "param", "numbers"),
    [
        (None, 4_000_001, "max_pixels", ("4000001", "4000000", "qwen_vl.max_pixels")),
        (5_000_000, None, "min_pixels", ("5000000", "4000000", "qwen_vl.max_pixels")),
        (1, 783, "max_pixels", ("783", "784")),
        (None, 1000, "max_pixels", ("1000", "3136 of this server")),
        (1_000_001, None, "min_pixels", ("1000001", "1000000 of this server")),
        (2000, 1000, "min_pixels", ("2000", "1000")),
    ],
)
def test_other_numbers_are_refused_with_those_that_disagree(
    least: int | None, most: int | None, param: str, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        LIMITS.choose(least, most)
    assert refused.value.param == param
    assert all(number in refused.value.message for number in numbers)
    with pytest.raises(InvalidRequest, match=r"^the second: ") as refused:
        LIMITS.choose(least, most, "the second")
    assert refused.value.param == "the second"


def test_detail_is_a_number_of_pixels_within_the_servers() -> None:
    details = {name: LIMITS.of_detail(name) for name in ("low", "high", "original", "auto")}
    assert details == {"low": 262_144, "high": 4_000_000, "original": 4_000_000, "auto": None}
    assert LIMITS.of_detail(None) is None
    assert PixelLimits(4, 1000, 1000, 4).of_detail("low") == 1000
    large = PixelLimits(LOW_DETAIL_PIXELS + 1, 10**6, 10**6, 784)
    assert large.of_detail("low") == LOW_DETAIL_PIXELS + 1
    assert large.choose(None, large.of_detail("low")) is not None
