"""Pixels of pictures after resizing: the bounds of one picture, and the limits of a server, which a
caller's bounds are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.errors import InvalidRequest

LOW_DETAIL_PIXELS = 512 * 512
"""`detail: low`, as for OpenAI: 256 tokens of 32x32 pixels, at most 334 of 28x28."""


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """Least and most pixels (width x height) of a picture after resizing."""

    min_pixels: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """The pixels after resizing that one server reads of a picture: `min_pixels` and
    `default_max_pixels` where a caller asks for nothing, at most `max_pixels` in any case.
    `token_pixels` are those of one token."""

    min_pixels: int
    max_pixels: int
    default_max_pixels: int
    token_pixels: int

    @property
    def default(self) -> PixelBounds:
        return PixelBounds(self.min_pixels, self.default_max_pixels)

    def of_detail(self, detail: str | None) -> int | None:
        """The most pixels that OpenAI's `detail` asks for; None for `auto`, which asks for
        nothing."""
        if detail == "low":
            return max(self.min_pixels, min(LOW_DETAIL_PIXELS, self.max_pixels))
        return self.max_pixels if detail in ("high", "original") else None

    def choose(self, least: int | None, most: int | None, where: str = "") -> PixelBounds | None:
        """The bounds of a caller who asks for at least `least` and at most `most` pixels, or for
        one of them; None of one who asks for neither.

        Raises `InvalidRequest` for numbers that this server does not read or that contradict each
        other. `where` names the picture that they are for.
        """
        if least is None and most is None:
            return None
        for name, value in (("max_pixels", most), ("min_pixels", least)):
            if value is not None and value > self.max_pixels:
                problem = (
                    f"{name} {value} is above the {self.max_pixels} that this server reads of a "
                    "picture (setting qwen_vl.max_pixels); lower it"
                )
                raise _refusal(problem, name, where)
        if most is not None and most < self.token_pixels:
            problem = f"max_pixels {most} is less than the {self.token_pixels} of one token"
            raise _refusal(f"{problem}; raise it", "max_pixels", where)
        low = self.min_pixels if least is None else least
        high = self.default_max_pixels if most is None else most
        if low > high:
            low_is, high_is = (
                "" if value is not None else " of this server" for value in (least, most)
            )
            problem = f"min_pixels {low}{low_is} is above max_pixels {high}{high_is}"
            name = "max_pixels" if least is None else "min_pixels"
            raise _refusal(f"{problem}; give both, min_pixels not above max_pixels", name, where)
        return PixelBounds(low, high)


def _refusal(problem: str, name: str, where: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {problem}" if where else problem, param=where or name)
